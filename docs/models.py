"""Write docs/models.md: what is found and gated in every model of the tests' two zoos.

Run it after a change of the graph or of the gates: python docs/models.py
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent))

from dynprune.gate import GateConfig, plan_groups  # noqa: E402
from dynprune.graph import find_groups  # noqa: E402
from dynprune.measure.macs import analytic  # noqa: E402
from dynprune.rewrite import UNPACK_ATTENTION, rewrite  # noqa: E402
from tests.wider_zoo import WIDER  # noqa: E402
from tests.zoo import ZOO  # noqa: E402

KINDS = ("ffn", "qk", "v")
MODES = ("compact", "scatter", "masked", "refused")
NOTE = "<!-- Written by docs/models.py: change the source, not this page. -->\n"


@dataclass(frozen=True)
class Row:
    """What became of the neuron groups of one model.

    Attributes:
        name: of the model, as in tests/zoo.py or tests/wider_zoo.py.
        architecture: its class.
        kinds: structure -> groups found, those with a reason against them included.
        modes: mode -> groups that would run in it.
        reasons: why groups do not run compact -> how many.
        seconds: time that tracing and grouping took.
        reach: share of the model's multiply-adds that would vanish if every gate kept nothing.
    """

    name: str
    architecture: str
    kinds: Counter[str]
    modes: Counter[str]
    reasons: Counter[str]
    seconds: float
    reach: float

    def cells(self) -> list[str]:
        """Return the row of the table."""
        return [
            f"`{self.name}`",
            self.architecture,
            *(str(self.kinds[kind]) for kind in KINDS),
            *(str(self.modes[mode]) for mode in MODES),
            f"{self.seconds:.1f}",
            f"{self.reach:.0%}",
        ]


def inspect(name: str) -> Row:
    """Trace one model, plan its gates and verify them, as `dynprune inspect` does."""
    if name in ZOO:
        model, example = ZOO[name].made()
    else:
        model, example = WIDER[name].made(), WIDER[name].call(2)
        rewrite(model, example, (UNPACK_ATTENTION,))
    grouping = find_groups(model, example)
    configs = {group.name: GateConfig(align=1) for group in grouping.groups}
    plans = plan_groups(model, example, grouping.groups, configs)
    modes = {plan.group.name: plan.mode for plan in plans}
    total = sum(node.macs for node in grouping.costs)
    left = sum(analytic(grouping.costs, dict.fromkeys(modes, 0.0), modes).values())
    return Row(
        name,
        type(model).__name__,
        Counter(plan.group.kind for plan in plans),
        Counter(plan.mode for plan in plans),
        Counter(_in_short(plan.reason) for plan in plans if plan.reason is not None),
        grouping.seconds,
        1.0 - left / total,
    )


def _in_short(reason: str) -> str:
    """Leave out the model's own words, which name shapes of this size alone."""
    told = reason.startswith(("narrow heads", "fewer neurons"))
    return reason.partition(": ")[0] if told else reason


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def page(rows: list[Row]) -> str:
    """Describe every model in one table, and the reasons behind it in another."""
    head = ["model", "class", *KINDS, *MODES, "trace (s)", "MACs in reach"]
    lines = [
        "# Models\n",
        NOTE,
        "What `dynprune inspect` says of the models that the tests are run on. They are small "
        "versions with random weights: the structure is the published one, the sizes are not.\n",
        "- **ffn, qk, v**: neuron groups found: hidden layers, queries with keys, values.",
        "- **compact, scatter, masked, refused**: how many of them run in which mode. Each mode "
        "was verified by running it. Compact attention multiplies kept channels alone: the "
        "projections, queries by keys, and attention by values.",
        "- **trace (s)**: seconds on one thread to trace the model and to find its groups.",
        "- **MACs in reach**: the share of the model's multiply-adds that would vanish if every "
        "gate kept nothing. It is what pruning can work on at all; `dynprune report flops` says "
        "what a prune ratio makes of it.",
        "",
        "| " + " | ".join(head) + " |",
        "|---|---|" + "---:|" * (len(head) - 2),
    ]
    lines += ["| " + " | ".join(row.cells()) + " |" for row in rows]
    lines += [
        "\nCausal models are refused as they stand here, since a gate would see tokens of the "
        "future. Their groups are found all the same, and the tests gate them.\n",
        "## Why a group is not compact\n",
        "| model | groups | reason |",
        "|---|---:|---|",
    ]
    for row in rows:
        lines += [
            f"| `{row.name}` | {count} | {_cell(reason)} |"
            for reason, count in row.reasons.most_common()
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page."""
    text = page([inspect(name) for name in (*ZOO, *WIDER)])
    (FOLDER / "models.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
