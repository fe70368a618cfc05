"""Per-channel layers behind queries and keys: what is skipped is hidden behind them, not before."""

import torch
from torch import Tensor, nn

from dynprune.gate.binding import Binding, spread
from dynprune.gate.carriers import rows_of_each, spread_over_rows
from dynprune.gate.layout import lend_attributes
from dynprune.gate.neuron_gate import NeuronGate
from dynprune.gate.selection import Selection

__all__ = ["HidingCarrier"]


class HidingCarrier(nn.Module):
    """A batch norm or depthwise convolution whose skipped queries and keys come out as zero.

    Such a layer moves zero elsewhere, so that the layers before it leave their neurons as they are.

    Args:
        source: the layer that this one replaces; it runs whole.

    Shape:
        - Input, output: (B * r, channels, ...)
    """

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self.source = source
        self._hides: tuple[Binding, ...] = ()
        lend_attributes(source, self)
        self.train(source.training)

    def bind(self, gate: NeuronGate, index: Tensor, *, carries_value: bool) -> None:
        """Hide the neurons of a gate, at (neurons, m) channels, in place.

        Args:
            gate: of the neurons.
            index: where they are.
            carries_value: whether the gate's values multiply the last of the m channels (the keys).
        """
        name = f"hides_{len(self._hides)}"
        self.register_buffer(name, index.to(gate.prior.device), persistent=False)
        self._hides = (*self._hides, Binding(gate.members, name, carries_value))

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer, and hide what was skipped."""
        y: Tensor = self.source(x)
        for binding in self._hides:
            selection = binding.neurons.scope.current().selection(binding.neurons)
            assert binding.index is not None
            index: Tensor = getattr(self, binding.index)
            factor = spread(selection.keep.to(y.dtype), index, y.shape[1], 1.0)
            if binding.carries_value:
                last = index[:, -1].expand(selection.batch, -1)
                factor = factor.scatter(1, last, _values(selection).to(y.dtype))
            factor = spread_over_rows(factor, rows_of_each(y, selection.batch))
            y = y * factor.view(*factor.shape, *[1] * (y.dim() - 2))
        return y


def _values(selection: Selection) -> Tensor:
    """Return (B, neurons): the values of kept neurons, and zeros."""
    if selection.mask is not None:
        return selection.mask
    if selection.value is None:
        return selection.keep
    whole = torch.zeros_like(selection.keep, dtype=selection.value.dtype)
    return whole.scatter(1, selection.index, selection.value)
