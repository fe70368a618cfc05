"""Draw the figures of docs/how_it_works.md from the code that they explain.

Run it after a change of a schedule or of a gate: python docs/figures.py
"""

from pathlib import Path

import matplotlib as mpl
import torch

mpl.use("svg")
mpl.rcParams.update({"svg.hashsalt": "dynprune", "svg.fonttype": "path", "font.size": 9})
from matplotlib import pyplot as plt  # noqa: E402
from torch import nn  # noqa: E402

import dynprune  # noqa: E402
from dynprune.distill.schedule import PruneSchedule  # noqa: E402
from dynprune.gate import gates  # noqa: E402
from dynprune.measure.executed import count_executed  # noqa: E402

FOLDER = Path(__file__).parent / "images"
INK, BLUE, ORANGE, PAPER = "#4d5560", "#0072b2", "#d55e00", "#ffffff"


class Block(nn.Module):
    """A hidden layer between two residual connections, as every transformer has it."""

    def __init__(self, width: int = 64, hidden: int = 256) -> None:
        """Make the layers."""
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return tokens (B, N, width) for tokens of the same shape."""
        return tokens + self.fc2(self.act(self.fc1(self.norm(tokens))))


def inputs(count: int) -> torch.Tensor:
    """Return tokens of two kinds, (count, 16, 64): they differ in where they lie."""
    kinds = torch.randn(2, 1, 64) * 2
    return torch.randn(count, 16, 64) + kinds[torch.arange(count) * 2 // count]


def schedules() -> plt.Figure:
    """Draw how the pruned share grows."""
    figure, axes = plt.subplots(figsize=(4.6, 2.4))
    steps = range(0, 161)
    for shape, colour in (("linear", INK), ("cubic", BLUE), ("cosine", ORANGE)):
        schedule = PruneSchedule(type=shape, end_step=100)
        axes.plot(
            steps, [0.5 * schedule.fraction(s, 160) for s in steps], color=colour, label=shape
        )
    axes.set(xlabel="step", ylabel="share of neurons skipped", ylim=(0, 0.55))
    axes.legend(frameon=False)
    return figure


def kept_sets() -> plt.Figure:
    """Draw which neurons each of 24 inputs keeps, with each input's own order."""
    torch.manual_seed(0)
    tokens = inputs(24)
    student = dynprune.apply(
        Block(),
        tokens[:1],
        dynprune.load_recipe("any", ["sparsity.final=0.75"]),
        calibration=[tokens],
    )
    (gate,) = gates(student).values()
    with torch.no_grad():
        student(tokens)
    figure, axes = plt.subplots(figsize=(6.2, 2.2))
    axes.imshow(gate.mask[:, :128], aspect="auto", cmap="Blues", interpolation="nearest", vmax=1.4)
    axes.set(xlabel="neurons of one hidden layer (the first 128)", ylabel="inputs, two kinds")
    return figure


def executed() -> plt.Figure:
    """Draw the multiply-adds that run against the share that is skipped."""
    torch.manual_seed(0)
    tokens = inputs(2)[:1]
    shares = [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875]
    example = dynprune.Example((tokens,))
    dense = count_executed(Block().eval(), example).total
    ran = []
    for share in shares:
        recipe = dynprune.load_recipe("any", [f"sparsity.final={share}"])
        student = dynprune.apply(Block(), tokens, recipe, calibration=[tokens])
        ran.append(count_executed(student.eval(), example).total / dense)
    figure, axes = plt.subplots(figsize=(4.6, 2.4))
    axes.plot(shares, ran, "o-", color=BLUE, label="counted from the operations that ran")
    axes.plot(shares, [1 - share for share in shares], "--", color=INK, label="1 - share")
    axes.set(xlabel="share of neurons skipped", ylabel="multiply-adds, of dense", ylim=(0, 1.2))
    axes.legend(frameon=False)
    return figure


FIGURES = {"schedules": schedules, "kept_sets": kept_sets, "executed": executed}


def main() -> None:
    """Write every figure."""
    FOLDER.mkdir(exist_ok=True)
    for name, draw in FIGURES.items():
        figure = draw()
        figure.patch.set_facecolor(PAPER)
        path = FOLDER / f"{name}.svg"
        figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
