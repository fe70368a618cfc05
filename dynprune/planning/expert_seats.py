"""Let groups of a gated model compute by experts that are still being fitted, layer by layer."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from dynprune.gate.inject import gates
from dynprune.gate.instances import from_instances, to_instances
from dynprune.gate.linear import DynamicLinear
from dynprune.gate.plan import GroupPlan
from dynprune.gate.route import Reader
from dynprune.planning.expert_draft import GroupDraft

__all__ = ["ExpertSeat", "active", "seat_of", "seated"]


@dataclass(eq=False)
class ExpertSeat:
    """A group of a gated model that computes by a draft's experts while it is active.

    Its gate skips nothing, so that its consumers read all neurons; what they make of them is
    replaced by what the fitted experts make of their own.

    Attributes:
        plan: of the group.
        draft: whose sets and router are settled; consumers without readers stay dense.
        is_active: whether experts compute now.
        tokens: (B, T, C) that the group's first producer read last, and which of them count.
        hidden: (B, T, neurons) that each consumer read last.
    """

    plan: GroupPlan
    draft: GroupDraft
    is_active: bool = False
    tokens: tuple[Tensor, Tensor | None] | None = field(default=None, repr=False)
    hidden: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def forget(self) -> dict[str, Reader]:
        """Make all consumers dense again, and return the readers that there were."""
        before, self.draft.readers = self.draft.readers, {}
        self.draft.take_sets(self.draft.index)
        return before

    def add(self, name: str, target: Tensor) -> None:
        """Add what one consumer should have made, (B, T, out), of what it read last."""
        assert self.tokens is not None
        tokens, real = self.tokens
        self.draft.add(name, tokens, self.hidden.pop(name), target, real)

    def first(self, module: DynamicLinear, args: tuple[Any, ...]) -> None:
        """Forward pre-hook of the first producer."""
        layout = self.plan.layout
        x = args[0].movedim(1, -1) if module.layout == "pointwise" else args[0]
        call = module.makes[0].neurons.scope.current()
        count = call.instances if layout.folded else x.shape[layout.axis]
        tokens = to_instances(x, count, layout)
        real = call.real(tokens, x)
        self.tokens = tokens.detach().clone(), None if real is None else real.bool()

    def made(self, name: str, module: DynamicLinear, x: Tensor) -> Tensor | None:
        """Return what a consumer makes of its input by its experts; None where it is dense."""
        if not self.is_active:
            return None
        assert self.tokens is not None
        tokens, real = self.tokens
        last = x.movedim(1, -1) if module.layout == "pointwise" else x
        hidden = to_instances(last, len(tokens), self.plan.layout)
        if name not in self.draft.readers:
            self.hidden[name] = hidden.detach()
            return None
        y = from_instances(self.draft.make(name, tokens, hidden, real), last, self.plan.layout)
        return y.movedim(-1, 1) if module.layout == "pointwise" else y


def seat_of(
    seats: Sequence[ExpertSeat], model: nn.Module
) -> dict[nn.Module, tuple[ExpertSeat, str]]:
    """Return, for every consumer of these groups, its seat and its name."""
    return {
        model.get_submodule(channels.module): (seat, channels.module)
        for seat in seats
        for channels in seat.plan.group.consumers
    }


@contextmanager
def active(seats: Sequence[ExpertSeat]) -> Iterator[None]:
    """Let experts compute for the block."""
    for seat in seats:
        seat.is_active = True
    try:
        yield
    finally:
        for seat in seats:
            seat.is_active = False


@contextmanager
def seated(model: nn.Module, seats: Sequence[ExpertSeat]) -> Iterator[None]:
    """Seat experts in a gated model for the block, in place."""
    own = gates(model)
    before = {seat.plan.group.name: own[seat.plan.group.name].prune_ratio for seat in seats}
    with ExitStack() as stack:
        for seat in seats:
            producer = model.get_submodule(seat.plan.group.producers[0].module)
            stack.callback(producer.register_forward_pre_hook(seat.first).remove)
        for module, (seat, name) in seat_of(seats, model).items():

            def hook(
                layer: DynamicLinear,
                args: tuple[Any, ...],
                _y: Tensor,
                seat: ExpertSeat = seat,
                name: str = name,
            ) -> Tensor | None:
                return seat.made(name, layer, args[0])

            stack.callback(module.register_forward_hook(hook).remove)
        try:
            for name in before:
                own[name].set_prune_ratio(0.0)
            yield
        finally:
            for name, ratio in before.items():
                own[name].set_prune_ratio(ratio)
