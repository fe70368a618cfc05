"""What a program's nodes say of themselves, and what new ones must say."""

from typing import Any, cast

from torch import Tensor, fx

__all__ = ["describe", "value_of"]


def value_of(node: Any) -> Tensor:
    """Give the tensor without data that tells a node's shape and type."""
    return cast(Tensor, node.meta["val"])


def describe(new: fx.Node, like: fx.Node, value: Tensor) -> None:
    """Let a new node come from where another did, with a value of its own, in place."""
    new.meta = {**like.meta, "val": value}
