"""How the neurons of a gate sit on one axis of a layer, in general and in one call."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynprune.gate.call import GatedNeurons
from dynprune.gate.selection import Selection

__all__ = ["Binding", "Bound", "gate_mean", "spread"]


@dataclass(frozen=True)
class Binding:
    """How the neurons of one gate sit on one axis of a layer.

    Attributes:
        neurons: of the gate.
        index: name of the buffer that holds the (neurons, m) positions, or None where the
            neurons are the whole axis in order.
        carries_value: whether the gate's values multiply here. They do at every consumer, and,
            for queries and keys, at one side of the product.
        beside: whether the layer's outputs are added to those of another one, which makes these
            neurons.
        hides: whether skipped queries and keys are zero at this layer already; a layer behind it
            sees to that elsewhere.
    """

    neurons: GatedNeurons
    index: str | None
    carries_value: bool
    beside: bool = False
    hides: bool = True


@dataclass(frozen=True)
class Bound:
    """A binding in one call: what was chosen, and where on the axis.

    Attributes:
        selection: of the gate.
        index: (neurons, m) positions on the axis, or None where the neurons are the whole axis.
        carries_value: whether the gate's values multiply here.
        last_carries: whether they multiply the last of the m positions of a neuron alone (the
            keys, where queries and keys lie in one layer).
    """

    selection: Selection
    index: Tensor | None
    carries_value: bool
    last_carries: bool = False


def spread(values: Tensor, index: Tensor | None, size: int, fill: float) -> Tensor:
    """Lay (B, neurons) values out along an axis of ``size`` channels, ``fill`` elsewhere."""
    if index is None:
        return values
    full = values.new_full((values.shape[0], size), fill)
    flat = index.reshape(1, -1).expand(values.shape[0], -1)
    return full.scatter(1, flat, values.repeat_interleave(index.shape[1], 1))


def gate_mean(bounds: Sequence[Bound], size: int) -> Tensor | None:
    """Return (1, size): the values that replace skipped channels; None where all are zero."""
    total: Tensor | None = None
    for bound in bounds:
        if bound.selection.mean is not None:
            mean = spread(bound.selection.mean[None], bound.index, size, 0.0)
            total = mean if total is None else total + mean
    return total


def all_positions(index: Tensor | None, size: int, device: torch.device) -> Tensor:
    """Return the (neurons, m) positions of a binding's neurons on an axis of ``size``."""
    return torch.arange(size, device=device)[:, None] if index is None else index
