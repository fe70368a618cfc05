"""What the values that label maps hold mean: which class each is, and which count for nothing.

Every reader turns values into class indices here, once, and what counts for nothing into
:data:`VOID`. So losses, scores, augmentation and figures know one void value, whatever the files
or a recipe call it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["VOID", "LabelValues", "suggest_mapping"]

VOID = 255
"""Label of pixels that count for nothing."""

_VALUES = 256  # that a byte holds
_FEW = 8  # values of a mask that was drawn to be looked at


@dataclass(frozen=True)
class LabelValues:
    """How the values in label maps become class indices.

    A value goes through the layout's own table, or loses one where ``reduce`` says so, or is what
    ``mapping`` says; then what is ignored becomes void. 255 is void besides, unless ``mapping``
    says what it is.

    Attributes:
        ignore: class indices that count for nothing.
        reduce: values count from 1, and 0 is void, as ``do_reduce_labels`` of an image processor.
        mapping: value in the file -> class index, or 255 for void; others stay as they are.

    Example:
        >>> values = LabelValues(mapping={255: 1})
        >>> values.table()[[0, 1, 255]].tolist()
        [0, 1, 1]
    """

    ignore: tuple[int, ...] = (VOID,)
    reduce: bool = False
    mapping: Mapping[int, int] = field(default_factory=dict)

    def table(self, layout: Sequence[int] | None = None) -> Tensor:
        """Return the class index (or :data:`VOID`) of each value that a label map can hold.

        Args:
            layout: the class indices of a layout whose values are others; it takes the place of
                ``reduce``.

        Shape:
            uint8 ``(256,)``.
        """
        table = list(range(_VALUES)) if layout is None else list(layout)
        if self.reduce and layout is None:
            table = [VOID, *range(VOID - 1), VOID]
        for value, index in self.mapping.items():
            table[value] = index
        for index in self.ignore:
            table = [VOID if found == index else found for found in table]
        return torch.tensor(table, dtype=torch.uint8)

    def describe(self) -> str:
        """Say in a few words which values count for nothing."""
        first = "0 is ignored and 1 is the first class; " if self.reduce else ""
        mapped = ", ".join(f"{value} is {_name(index)}" for value, index in self.mapping.items())
        void = sorted({VOID, *self.ignore} - {v for v in (VOID,) if self.mapping.get(v, v) != v})
        kind = "class" if self.reduce else "value"
        ignored = "nothing is ignored"
        if void:
            many = len(void) > 1
            listed = f"{', '.join(map(str, void[:-1]))} and {void[-1]}" if many else str(void[0])
            plural = ("es" if self.reduce else "s") if many else ""
            ignored = f"{kind}{plural} {listed} {'are' if many else 'is'} ignored"
        return first + (f"{mapped}; " if mapped else "") + ignored


def suggest_mapping(values: Sequence[int], classes: int) -> str | None:
    """Suggest a ``data.label_map`` for masks whose values are grey levels rather than indices.

    Args:
        values: that occur in label maps.
        classes: that there are.

    Returns:
        The mapping as a recipe has it; None where the values look like class indices.

    Example:
        >>> suggest_mapping([0, 128, 255], 3)
        '{0: 0, 128: 1, 255: 2}'
    """
    levels = sorted(set(values))
    if len(levels) > classes:
        levels = [value for value in levels if value != VOID]
    few = 1 < len(levels) <= min(classes, _FEW)
    if not few or levels[0] != 0 or levels[-1] < 2 * classes:
        return None
    return "{" + ", ".join(f"{value}: {index}" for index, value in enumerate(levels)) + "}"


def _name(index: int) -> str:
    return "ignored" if index == VOID else f"class {index}"
