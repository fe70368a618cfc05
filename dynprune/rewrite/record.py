"""What became of a rewrite, in plain values that can be written down."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Rewrite"]


@dataclass(frozen=True)
class Rewrite:
    """What became of one rewrite on one model, in plain values.

    Attributes:
        name: key of `REWRITES`.
        module: the module that was replaced, or looked at; "" where none was a candidate.
        details: what `reapply` needs.
        max_error: largest relative error of the proof, None where it never ran.
        reason: why the rewrite was refused; None where it was made.
    """

    name: str
    module: str
    details: Mapping[str, Any]
    max_error: float | None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Rewrite":
        """Read what `to_json` returned."""
        return cls(**record)
