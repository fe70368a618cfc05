"""Head widths: integers on which the code of an attention module bases the width of its heads."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

__all__ = ["HeadWidth", "set_head_widths"]


@dataclass
class HeadWidth:
    """An integer attribute of a host module that says how wide the heads are.

    Attributes:
        module: the host.
        attribute: its name.
        dense: its value at full width.
        per_head: whether it is the width of one head; otherwise that of all heads together.
    """

    module: nn.Module
    attribute: str
    dense: int
    per_head: bool


def set_head_widths(widths: Sequence[HeadWidth], kept: int | None, segments: int) -> None:
    """Set the attributes to heads of ``kept`` neurons, or to full width where None, in place."""
    for width in widths:
        narrow = width.dense
        if kept is not None:
            narrow = kept if width.per_head else kept * segments
        setattr(width.module, width.attribute, narrow)
