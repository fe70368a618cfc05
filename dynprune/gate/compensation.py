"""The means of skipped neurons, as a constant of what reads them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynprune.gate.binding import spread
from dynprune.gate.linear import DynamicLinear
from dynprune.gate.neuron_gate import NeuronGate

__all__ = ["fold_means", "settle_means"]


def fold_means(model: nn.Module) -> None:
    r"""Set the offset of every consumer to :math:`W_2 \mu`, in place.

    To be called whenever means were set. A model with nothing skipped then computes the dense
    function: the consumer adds what the subtracted means took away.
    """
    with torch.no_grad():
        for layer, offset in _offsets(model).items():
            assert layer.offset is not None
            layer.offset.copy_(offset)


def settle_means(model: nn.Module) -> None:
    r"""Move what weights gained over the means, :math:`o - W_2 \mu`, into the biases, in place.

    Without the gates the model then computes what it does with nothing skipped. Weights that no
    training touched lose no bit.
    """
    with torch.no_grad():
        for layer, offset in _offsets(model).items():
            assert layer.offset is not None
            if torch.equal(layer.offset, offset):
                continue
            gained = layer.offset - offset
            if layer.bias is None:
                layer.bias = nn.Parameter(gained)
            else:
                layer.bias.add_(gained)
            layer.offset.copy_(offset)


def _offsets(model: nn.Module) -> dict[DynamicLinear, Tensor]:
    """Return W mu for every layer that has an offset."""
    means = {m.members: m.mean for m in model.modules() if isinstance(m, NeuronGate)}
    found = {}
    for layer in model.modules():
        if not isinstance(layer, DynamicLinear) or layer.offset is None:
            continue
        size = layer.in_features
        total = layer.weight.new_zeros(1, size)
        for binding in layer.reads:
            mean = means.get(binding.neurons)
            if mean is not None:
                index = None if binding.index is None else getattr(layer, binding.index)
                total = total + spread(mean[None], index, size, 0.0).to(total)
        found[layer] = F.linear(total, layer.matrix)[0]
    return found
