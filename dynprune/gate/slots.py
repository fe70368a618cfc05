"""The channels of every head of a product that gates keep, and where they are in its operands."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dynprune.gate.neuron_gate import NeuronGate
from dynprune.graph.slots import HeadSlots

__all__ = ["KeptSlots", "Site", "along", "kept_slots", "laid_out"]


@dataclass(frozen=True, eq=False)
class Site:
    """A gate whose neurons meet in products, and the slots at which they stand there.

    Attributes:
        gate: of the neurons.
        slots: where they are in every head.
        held: all of their slots, as plain numbers.
    """

    gate: NeuronGate
    slots: HeadSlots
    held: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "held", frozenset(self.slots.index.flatten().tolist()))


@dataclass(frozen=True, eq=False)
class KeptSlots:
    """The slots (B, heads, K) of every head of a product that are computed, and its full width."""

    slots: Tensor
    width: int


def kept_slots(sites: Sequence[Site]) -> KeptSlots | None:
    """Return what gates that share the heads of a product keep of it; None where it runs whole."""
    parts: list[Tensor] = []
    held: set[int] = set()
    for site in sites:
        gate, slots = site.gate, site.slots
        call = gate.members.scope.newest()
        selection = None if call is None else call.selections.get(gate.members)
        if selection is None or selection.execution == "masked":
            continue
        batch, heads, width = selection.batch, gate.segments, gate.width
        index = selection.index.view(batch, heads, -1)
        first = torch.arange(0, heads * width, width, device=index.device)[:, None]
        assert gate.slots is not None
        place = gate.slots.to(index.device)[index - first].flatten(2)  # (B, heads, k * m)
        if slots.heads != tuple(range(heads)):
            place = torch.stack([place[:, head] for head in slots.heads], 1)
        parts.append(place)
        held.update(site.held)
    if not parts:
        return None
    width = sites[0].slots.width
    if rest := [slot for slot in range(width) if slot not in held]:
        whole = torch.tensor(rest, device=parts[0].device)
        parts.append(whole.expand(*parts[0].shape[:2], -1))
    return KeptSlots(torch.cat(parts, -1) if len(parts) > 1 else parts[0], width)


def along(kept: KeptSlots | None, shape: Sequence[int], axis: int) -> Tensor | None:
    """Return the index that gathers the kept channels of an operand, or None where it must not.

    Args:
        kept: slots (B, heads, K).
        shape: (..., heads, tokens, channels), or with batch and heads in one axis.
        axis: of the channels, -1, or -2 where tokens are last.
    """
    if kept is None or len(shape) < 3 or shape[axis] != kept.width:
        return None
    batch, heads, count = kept.slots.shape
    lead = shape[:-2]
    rows = math.prod(lead)
    slots = kept.slots
    if len(lead) > 1 and lead[-1] != heads and heads % lead[-1] == 0:
        slots = slots[:, :: heads // lead[-1]]  # keys and values that several heads share
        heads = int(lead[-1])
    if (isinstance(batch, int) and batch == 0) or rows % (batch * heads):
        return None
    slots = slots[:, None].expand(batch, rows // (batch * heads), heads, count)
    index = slots.reshape(*lead, count)
    tokens = shape[-2 if axis == -1 else -1]
    if axis == -1:
        return index[..., None, :].expand(*lead, tokens, count)
    return index[..., :, None].expand(*lead, count, tokens)


def laid_out(y: Tensor, index: Tensor, size: int) -> Tensor:
    """Lay kept channels out at full width; zeros stand at skipped ones."""
    return y.new_zeros(*y.shape[:-1], size).scatter(-1, index, y)
