"""Refit what reads the neurons, in closed form, so that kept neurons stand in for skipped ones."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.gate.call import Observation, observing
from dynprune.gate.inject import gates
from dynprune.gate.instances import to_instances
from dynprune.gate.linear import DynamicLinear
from dynprune.gate.neuron_gate import NeuronGate
from dynprune.gate.selection import GateOutput
from dynprune.gate.topr import keep_mask, top_r
from dynprune.host.modes import at_inference
from dynprune.host.progress import reported
from dynprune.host.trial import Snapshot
from dynprune.measure.moments import dense_function
from dynprune.planning.least_squares import RIDGE, Moments
from dynprune.rewrite.overwritten import overwriting

__all__ = ["Weights", "fit_consumers", "parameters_of", "put", "refit_consumers", "weights_of"]

logger = logging.getLogger(__name__)

Weights = dict[DynamicLinear, tuple[Tensor, Tensor | None]]
"""Of layers, as they lie in their parameters: weight and bias."""


def refit_consumers(model: nn.Module, calls: Iterable[Example], *, ridge: float = RIDGE) -> int:
    r"""Refit every consumer's weight and bias to the dense output, in place.

    With z = y - mu the neurons off their compensation and M the mask that each input's gate gives
    at the final prune ratio,

    .. math:: \min_{W', b'} \; \mathrm{mean} \,
        \| W z - W' (M \circ z) - b' \|^2 + \lambda \| W' - W \|^2

    over the tokens of a few inputs to the dense model. The minimum is a linear system a layer.
    The masks are each input's own, or each token's, so one weight serves all of them. A consumer
    that reads other neurons besides, or is not a plain linear of one group, stays as it is.

    Args:
        model: gated and calibrated; order, means and predictors stay.
        calls: inputs, about 32 in all.
        ridge: lambda, over the mean square of a kept neuron.

    Returns:
        The consumers that were refitted.

    Raises:
        UsageError: where ``calls`` is empty.

    Source: reconstruction by least squares as in ThiNet, arXiv 1707.06342, and, with the ridge
    about the old weights, Optimal Brain Compression, arXiv 2208.11580.
    """
    new = fit_consumers(model, calls, ridge=ridge)
    with torch.no_grad(), overwriting(model, parameters_of(new)):
        put(new)
    return len(new)


def fit_consumers(model: nn.Module, calls: Iterable[Example], *, ridge: float = RIDGE) -> Weights:
    """Return what `refit_consumers` puts in the place of weights and biases."""
    readers = _readers(model)
    sums = {
        layer: Moments.empty(layer.in_features, layer.out_features, layer.weight.device)
        for layer in readers
    }
    kept = {gate: gate.kept for gate in readers.values()}
    count = 0
    with at_inference(model), dense_function(model), ExitStack() as stack:
        for layer, gate in readers.items():
            stack.enter_context(_watch(layer, gate, kept[gate], sums[layer]))
        own = Snapshot(model)
        for call in reported("refit", calls):
            call.run(model)
            own.put_back()
            count += 1
    if not count:
        raise UsageError("Refitting needs at least one input, got none.")
    found = {}
    for layer in readers:
        solved = sums[layer].solve(layer.matrix.detach(), ridge)
        if solved is not None:
            found[layer] = shaped(layer, *solved)
    return found


def shaped(layer: DynamicLinear, matrix: Tensor, shift: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return a matrix as a layer's weight, and its bias with ``shift`` added."""
    weight, bias = layer.weight.detach(), layer.bias
    new = matrix.t() if layer.layout == "transposed" else matrix
    return (
        new.reshape(weight.shape).to(weight),
        None if bias is None else (bias.detach() + shift).to(bias),
    )


def weights_of(layers: Iterable[DynamicLinear]) -> Weights:
    """Return copies of the layers' weights and biases."""
    return {
        layer: (
            layer.weight.detach().clone(),
            None if layer.bias is None else layer.bias.detach().clone(),
        )
        for layer in layers
    }


def parameters_of(layers: Iterable[DynamicLinear]) -> list[nn.Parameter]:
    """Return the weights and biases of layers."""
    return [p for layer in layers for p in (layer.weight, layer.bias) if p is not None]


@torch.no_grad()
def put(weights: Weights) -> None:
    """Overwrite weights and biases of layers, in place."""
    for layer, (weight, bias) in weights.items():
        layer.weight.copy_(weight)
        if layer.bias is not None and bias is not None:
            layer.bias.copy_(bias)


def _readers(model: nn.Module) -> dict[DynamicLinear, NeuronGate]:
    """Return the layers that read the whole of one gate's neurons and nothing else."""
    owners = {gate.members: gate for gate in gates(model).values()}
    return {
        layer: owners[layer.reads[0].neurons]
        for layer in model.modules()
        if isinstance(layer, DynamicLinear)
        and len(layer.reads) == 1
        and layer.reads[0].index is None
        and layer.bias is not None
    }


@contextmanager
def _watch(layer: DynamicLinear, gate: NeuronGate, kept: int, sums: Moments) -> Iterator[None]:
    """Add up the moments of every call while the block runs."""
    masks: Tensor | None = None
    counts: Tensor | None = None
    weight = layer.matrix.detach()

    def note(seen: Observation) -> None:
        nonlocal masks, counts
        if seen.neurons is gate.members:
            masks, counts = _masks(gate, seen.output, kept), seen.real

    def before(module: DynamicLinear, args: tuple[Tensor, ...]) -> None:
        x = args[0].movedim(1, -1) if module.layout == "pointwise" else args[0]
        assert masks is not None
        tokens = to_instances(x, len(masks), gate.layout)  # (B, T, neurons)
        if gate.per_token:
            chosen = slice(None) if counts is None else counts.flatten().bool()
            z, mask = tokens[chosen].squeeze(1), masks[chosen]
            z = (z if gate.mean is None else z - gate.mean).to(mask.dtype)
            sums.add(z * mask, z @ weight.t().to(z))
            return
        real = gate.members.scope.current().real(tokens)
        for row, mask in enumerate(masks):
            z = tokens[row] if real is None else tokens[row][real[row].bool()]
            if gate.mean is not None:
                z = z - gate.mean
            z = z.to(mask.dtype)
            sums.add(z * mask, z @ weight.t().to(z))

    handle = layer.register_forward_pre_hook(before)
    try:
        with observing(note):
            yield
    finally:
        handle.remove()


def _masks(gate: NeuronGate, output: GateOutput, kept: int) -> Tensor:
    """Return (B, neurons): the factors that these inputs' neurons would have at the final ratio."""
    precise = torch.promote_types(output.scores.dtype, torch.float32)
    mask = keep_mask(top_r(output.scores, kept, gate.segments), gate.neurons, precise)
    return mask if output.factor is None else mask * output.factor
