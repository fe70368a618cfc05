"""What one part of the proof found, as it is written down."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Section"]


@dataclass
class Section:
    """The figures of one part.

    Attributes:
        name: of the part.
        attempts: how often something was attacked.
        outcomes: how the attempts ended, and how often.
        faults: what went wrong, a line each; empty where all is well.
        skipped: why the part could not run here, or None.
        figures: whatever else was measured.
    """

    name: str
    attempts: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    skipped: str | None = None
    figures: dict[str, Any] = field(default_factory=dict)

    def add(self, outcome: str, fault: str | None = None) -> None:
        """Count one attempt."""
        self.attempts += 1
        self.outcomes[outcome] += 1
        if fault is not None:
            self.faults.append(fault)

    def most(self, figure: str, value: float) -> None:
        """Keep the largest value of a figure."""
        self.figures[figure] = round(max(value, self.figures.get(figure, 0.0)), 3)

    def to_json(self) -> dict[str, Any]:
        """Return the section as plain values."""
        return {
            "name": self.name,
            "attempts": self.attempts,
            "faults": self.faults,
            "outcomes": dict(sorted(self.outcomes.items())),
            "skipped": self.skipped,
            **self.figures,
        }

    def row(self) -> str:
        """Return the section as a row of a Markdown table."""
        if self.skipped is not None:
            return f"| {self.name} | - | - | skipped: {self.skipped} |"
        ends = [f"{count} {outcome}" for outcome, count in self.outcomes.most_common()]
        more = [f"{name}: {value}" for name, value in self.figures.items()]
        return f"| {self.name} | {self.attempts} | {len(self.faults)} | {'; '.join(ends + more)} |"
