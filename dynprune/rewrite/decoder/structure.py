"""What a decoder fold is made of: a record in plain values, from which it is rebuilt untraced."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["ELEMENTWISE", "Branch", "DecoderStructure", "Step"]

ELEMENTWISE: Mapping[str, Callable[..., Tensor]] = {
    "elu": torch.ops.aten.elu,
    "gelu": torch.ops.aten.gelu,
    "hardsigmoid": torch.ops.aten.hardsigmoid,
    "hardswish": torch.ops.aten.hardswish,
    "leaky_relu": torch.ops.aten.leaky_relu,
    "mish": torch.ops.aten.mish,
    "relu": torch.ops.aten.relu,
    "sigmoid": torch.ops.aten.sigmoid,
    "silu": torch.ops.aten.silu,
    "tanh": torch.ops.aten.tanh,
}
"""Functions that a tail may call without a module; a record names no other."""


@dataclass(frozen=True)
class Branch:
    """One map on its way to the concatenation: projected, perhaps resized.

    Attributes:
        leaf: position of the map among the leaves of the head's ``(args, kwargs)``.
        projection: the linear or 1x1 convolution that reads the map, named within the head.
        columns: first and one past the last column of the fusing weight that reads this branch.
        mode: interpolation mode of the resize, or None where there is no resize.
        align_corners: of the resize, None where the mode has no such setting.
        antialias: of the resize.
    """

    leaf: int
    projection: str
    columns: tuple[int, int]
    mode: str | None = None
    align_corners: bool | None = None
    antialias: bool = False


@dataclass(frozen=True)
class Step:
    """One step of the tail behind the fusing layer: a module, or a function with scalars.

    Attributes:
        module: name of the module within the head, or None.
        function: key of `ELEMENTWISE`, or None.
        arguments: scalars that follow the tensor in the function's call.
    """

    module: str | None = None
    function: str | None = None
    arguments: tuple[float | int | bool | str, ...] = ()


@dataclass(frozen=True)
class DecoderStructure:
    """A head that projects maps, resizes and concatenates them, and fuses them by a 1x1 map.

    Attributes:
        branches: in the order of the head's inputs.
        size_leaf: the input whose height and width every branch is resized to.
        fuse: the linear or 1x1 convolution behind the concatenation, named within the head.
        norm: the BatchNorm directly behind it, or None.
        tail: what follows, in order.
    """

    branches: tuple[Branch, ...]
    size_leaf: int
    fuse: str
    norm: str | None = None
    tail: tuple[Step, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        record: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "DecoderStructure":
        """Read what `to_json` returned."""
        branches = tuple(
            Branch(**{**item, "columns": tuple(item["columns"])}) for item in record["branches"]
        )
        tail = tuple(
            Step(**{**item, "arguments": tuple(item["arguments"])}) for item in record["tail"]
        )
        return cls(branches, int(record["size_leaf"]), record["fuse"], record["norm"], tail)
