"""One small gated model whose gates choose by the input."""

import pytest
import torch
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from dynprune.example import Example
from dynprune.export.program import compact
from dynprune.gate import GateConfig, gate_model, gates
from dynprune.graph import find_groups
from dynprune.rewrite import rewrite

SIZES = [(64, 64), (97, 131), (128, 96), (66, 50)]


def pictures(height: int, width: int, *, batch: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, 3, height, width, generator=generator)
    return noise * torch.linspace(0.2, 2.0, batch).view(-1, 1, 1, 1) + seed / 3


def tiny_segformer() -> nn.Module:
    """Build a dense model; every call gives the same weights."""
    torch.manual_seed(0)
    config = SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[16, 32],
        num_attention_heads=[1, 2],
        patch_sizes=[7, 3],
        strides=[4, 2],
        mlp_ratios=[4, 4],
        decoder_hidden_size=32,
        num_labels=5,
    )
    return SegformerForSemanticSegmentation(config).eval()


def stir_predictors(model: nn.Module) -> None:
    """Make scores depend on the input strongly enough that kept sets differ, in place."""
    generator = torch.Generator().manual_seed(7)
    for gate in gates(model).values():
        assert gate.predictor is not None
        weight = gate.predictor.up.weight
        weight.data.copy_(0.2 * torch.randn(weight.shape, generator=generator))


@pytest.fixture(scope="session")
def example() -> Example:
    return Example((pictures(64, 64),))


@pytest.fixture(scope="session")
def gated(example: Example) -> nn.Module:
    model = tiny_segformer()
    (record,) = rewrite(model, example, ["fold-decoder"])
    assert record.reason is None
    groups = find_groups(model, example).candidates
    gate_model(model, example, groups, {g.name: GateConfig(prune_ratio=0.5) for g in groups})
    stir_predictors(model)
    return model


def expected(model: nn.Module, x: Tensor) -> Tensor:
    with compact(model):
        return model(x).logits


def assert_close(actual: Tensor, wanted: Tensor) -> None:
    """Float32 products in another order, relative to the largest value."""
    assert actual.shape == wanted.shape
    assert (actual - wanted).abs().max() <= 1e-4 * wanted.abs().max()
