"""The means of skipped neurons, as a constant of what reads them."""

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynprune.gate.attachment import gates
from dynprune.gate.binding import spread
from dynprune.gate.linear import DynamicLinear
from dynprune.gate.neuron_gate import NeuronGate

__all__ = ["fold_means", "settle_means"]

_SUMS = 4  # roundings: of weights, of means, of the offset and of the sum that it is held against


def fold_means(
    model: nn.Module,
    layers: Iterable[nn.Module] | None = None,
    known: Mapping[str, NeuronGate] | None = None,
) -> None:
    r"""Set the offset of every consumer to :math:`W_2 \mu`, in place.

    To be called whenever means were set. A model with nothing skipped then computes the dense
    function: the consumer adds what the subtracted means took away.

    Args:
        model: gated.
        layers: the consumers whose means were set; all of them where None.
        known: the gates of the model; looked for where None.
    """
    with torch.no_grad():
        for layer, offset in _offsets(model, layers, known).items():
            assert layer.offset is not None
            layer.offset.copy_(offset)


def settle_means(model: nn.Module) -> None:
    r"""Move what weights gained over the means, :math:`o - W_2 \mu`, into the biases, in place.

    Without the gates the model then computes what it does with nothing skipped. Weights that no
    training touched lose no bit, also where the model was moved or cast since: what rounding may
    have done to the offset is no gain.
    """
    with torch.no_grad():
        rounding = _offsets(model, of_sizes=True)
        for layer, offset in _offsets(model).items():
            assert layer.offset is not None
            gained = layer.offset - offset
            coarsest = max(torch.finfo(t).eps for t in (offset.dtype, torch.float32))
            if bool((gained.abs() <= _SUMS * coarsest * rounding[layer]).all()):
                continue
            if layer.bias is None:
                layer.bias = nn.Parameter(gained)
            else:
                layer.bias.add_(gained)
            layer.offset.copy_(offset)


def _offsets(
    model: nn.Module,
    layers: Iterable[nn.Module] | None = None,
    known: Mapping[str, NeuronGate] | None = None,
    *,
    of_sizes: bool = False,
) -> dict[DynamicLinear, Tensor]:
    r"""Return :math:`W \mu`, or :math:`|W| |\mu|`, for every layer that has an offset, or some."""
    every = gates(model) if known is None else known
    means = {gate.members: gate.mean for gate in every.values()}
    found = {}
    for layer in model.modules() if layers is None else layers:
        if not isinstance(layer, DynamicLinear) or layer.offset is None:
            continue
        if not any(binding.neurons in means for binding in layer.reads):
            continue  # of a gated model inside this one
        size = layer.in_features
        total = layer.weight.new_zeros(1, size)
        for binding in layer.reads:
            mean = means.get(binding.neurons)
            if mean is not None:
                index = None if binding.index is None else getattr(layer, binding.index)
                total = total + spread(mean[None], index, size, 0.0).to(total)
        matrix = layer.matrix
        found[layer] = F.linear(*((total.abs(), matrix.abs()) if of_sizes else (total, matrix)))[0]
    return found
