"""What is to be gated, how, and how each group turned out: plain data that can be written down."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from dynprune.errors import GateError
from dynprune.gate.config import Execution, GateConfig
from dynprune.gate.instances import InstanceLayout
from dynprune.graph.neurons import NeuronGroup
from dynprune.graph.slots import HeadSlots

__all__ = ["GroupPlan", "HeadAttribute", "Mode"]

Mode = Literal["compact", "scatter", "masked", "refused"]


@dataclass(frozen=True)
class HeadAttribute:
    """An integer attribute of a module on which its code bases the width of its heads.

    Attributes:
        module: fully qualified name.
        attribute: its name.
        per_head: whether it is one head's width, or that of all heads together.
    """

    module: str
    attribute: str
    per_head: bool


@dataclass(frozen=True)
class GroupPlan:
    """The fate of one neuron group.

    Attributes:
        group: the neurons.
        config: how their gate is built.
        mode: how they run when not training.
        reason: why the mode is not ``compact``; None where it is.
        layout: where the batch is in the producer's input.
        heads: attributes that compact execution narrows.
        products: where the code around the neurons sees heads of full width, so that the products
            of attention alone are narrowed: how they meet these neurons. None elsewhere.
    """

    group: NeuronGroup
    config: GateConfig
    mode: Mode = "compact"
    reason: str | None = None
    layout: InstanceLayout = field(default_factory=InstanceLayout)
    heads: tuple[HeadAttribute, ...] = ()
    products: HeadSlots | None = None

    @property
    def execution(self) -> Execution:
        """How the group's own layers run."""
        if self.mode == "refused":
            return "masked"
        return "scatter" if self.products is not None else self.mode

    def refused(self, reason: str) -> "GroupPlan":
        """Return the plan that leaves this group alone."""
        return replace(self, mode="refused", reason=reason, heads=(), products=None)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        return {
            "group": self.group.to_json(),
            "config": self.config.to_json(),
            "mode": self.mode,
            "reason": self.reason,
            "layout": asdict(self.layout),
            "heads": [asdict(h) for h in self.heads],
            "products": None if self.products is None else self.products.to_json(),
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "GroupPlan":
        """Read what `to_json` returned.

        Raises:
            GateError: where the mode is none.
        """
        if record["mode"] not in get_args(Mode):
            raise GateError(f"mode {record['mode']!r} is not one of {', '.join(get_args(Mode))}.")
        known = record.get("products")
        products = None if known is None else HeadSlots.from_json(known)
        return cls(
            group=replace(NeuronGroup.from_json(record["group"]), slots=products),
            config=GateConfig(**record["config"]),
            mode=record["mode"],
            reason=record["reason"],
            layout=InstanceLayout(**record["layout"]),
            heads=tuple(HeadAttribute(**h) for h in record["heads"]),
            products=products,
        )


def gated(plans: Sequence[GroupPlan]) -> list[GroupPlan]:
    """Return the plans whose groups have a gate."""
    return [plan for plan in plans if plan.mode != "refused"]
