"""Bounds on a result (`--fail-if`), for scripts that must stop when a figure is not good enough."""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynprune.errors import BoundError, UsageError

__all__ = ["Bound", "check_bounds", "parse_bounds"]

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_FORM = re.compile(r"\s*(?P<key>[^<>=\s][^<>=]*?)\s*(?P<sign>[<>]=?)\s*(?P<bound>[^<>=\s]+)\s*")


@dataclass(frozen=True)
class Bound:
    """A comparison that must not hold.

    Attributes:
        key: dotted path into the JSON result.
        sign: ``<``, ``<=``, ``>`` or ``>=``.
        limit: what the value is compared with.
    """

    key: str
    sign: str
    limit: float

    def holds(self, record: Mapping[str, Any]) -> float | None:
        """Return the value if the comparison holds, else None.

        Raises:
            UsageError: the result has no such number.
        """
        value: Any = record
        for part in self.key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            known = ", ".join(_numbers(record))
            raise UsageError(f"--fail-if: the result has no number {self.key!r}; it has {known}")
        return value if _COMPARE[self.sign](value, self.limit) else None


def parse_bounds(texts: Sequence[str] | None) -> list[Bound]:
    """Read bounds such as ``miou<0.5``, before any work is done.

    Raises:
        UsageError: one is not a key, a sign and a number.
    """
    bounds = []
    for text in texts or ():
        matched = _FORM.fullmatch(text)
        try:
            if matched is None:
                raise ValueError(text)
            bounds.append(Bound(matched["key"], matched["sign"], float(matched["bound"])))
        except ValueError:
            raise UsageError(
                f"--fail-if {text!r} is not a key, one of < <= > >=, and a number, "
                "such as 'miou<0.5'"
            ) from None
    return bounds


def check_bounds(bounds: Sequence[Bound], record: Mapping[str, Any]) -> None:
    """Compare a result with its bounds, after it was shown.

    Raises:
        BoundError: one is broken.
        UsageError: one names no number of the result.
    """
    broken = [
        f"{bound.key} is {value:g}, which is {bound.sign} {bound.limit:g}"
        for bound in bounds
        if (value := bound.holds(record)) is not None
    ]
    if broken:
        raise BoundError("a bound is broken: " + "; ".join(broken))


def _numbers(record: Mapping[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key, value in record.items():
        if isinstance(value, Mapping):
            found += _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append(f"{prefix}{key}")
    return found
