"""Refit what reads the neurons, in closed form, so that kept neurons stand in for skipped ones."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

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
from dynprune.host.trial import Snapshot
from dynprune.measure.moments import dense_function
from dynprune.rewrite.overwritten import overwriting

__all__ = ["refit_consumers"]

logger = logging.getLogger(__name__)

RIDGE = 3e-3  # of the mean square of a kept neuron: how firmly weights hold to what they were


@dataclass
class _Sums:
    """Second moments of what a consumer reads, over the tokens of all inputs.

    Attributes:
        kept: (neurons, neurons) of M z with M z.
        across: (neurons, neurons) of z with M z.
        whole_mean: (neurons,) mean of z.
        kept_mean: (neurons,) mean of M z.
        tokens: their number.
    """

    kept: Tensor
    across: Tensor
    whole_mean: Tensor
    kept_mean: Tensor
    tokens: int = 0


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
    readers = _readers(model)
    sums = {layer: _empty(gate) for layer, gate in readers.items()}
    kept = {gate: gate.kept for gate in readers.values()}
    count = 0
    with at_inference(model), dense_function(model), ExitStack() as stack:
        for layer, gate in readers.items():
            stack.enter_context(_watch(layer, gate, kept[gate], sums[layer]))
        own = Snapshot(model)
        for call in calls:
            call.run(model)
            own.put_back()
            count += 1
    if not count:
        raise UsageError("Refitting needs at least one input, got none.")
    weights = [p for layer in readers for p in (layer.weight, layer.bias) if p is not None]
    with torch.no_grad(), overwriting(model, weights):
        for layer in readers:
            _solve(layer, sums[layer], ridge)
    return len(readers)


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


def _empty(gate: NeuronGate) -> _Sums:
    size, device = gate.neurons, gate.prior.device
    square = torch.zeros(size, size, dtype=torch.float64, device=device)
    line = torch.zeros(size, dtype=torch.float64, device=device)
    return _Sums(square, square.clone(), line, line.clone())


@contextmanager
def _watch(layer: DynamicLinear, gate: NeuronGate, kept: int, sums: _Sums) -> Iterator[None]:
    """Add up the moments of every call while the block runs."""
    masks: Tensor | None = None
    counts: Tensor | None = None

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
            _add_tokens(sums, tokens[chosen].squeeze(1), masks[chosen], gate.mean)
            return
        real = gate.members.scope.current().real(tokens)
        for row, mask in enumerate(masks):
            z = tokens[row] if real is None else tokens[row][real[row].bool()]
            if gate.mean is not None:
                z = z - gate.mean
            z = z.to(mask.dtype)
            factor = mask.double()
            across = (z.t() @ z).double() * factor  # one product: the mask is alike for all tokens
            sums.across += across
            sums.kept += factor[:, None] * across
            mean = z.sum(0, dtype=torch.float64)
            sums.whole_mean += mean
            sums.kept_mean += mean * mask
            sums.tokens += len(z)

    handle = layer.register_forward_pre_hook(before)
    try:
        with observing(note):
            yield
    finally:
        handle.remove()


def _add_tokens(sums: _Sums, z: Tensor, mask: Tensor, mean: Tensor | None) -> None:
    """Add tokens (n, neurons), each with a mask of its own, in place."""
    z = (z if mean is None else z - mean).to(mask.dtype)
    part = z * mask
    sums.across += z.t() @ part
    sums.kept += part.t() @ part
    sums.whole_mean += z.sum(0, dtype=torch.float64)
    sums.kept_mean += part.sum(0, dtype=torch.float64)
    sums.tokens += len(z)


def _masks(gate: NeuronGate, output: GateOutput, kept: int) -> Tensor:
    """Return (B, neurons): the factors that these inputs' neurons would have at the final ratio."""
    precise = torch.promote_types(output.scores.dtype, torch.float32)
    mask = keep_mask(top_r(output.scores, kept, gate.segments), gate.neurons, precise)
    return mask if output.factor is None else mask * output.factor


def _solve(layer: DynamicLinear, sums: _Sums, ridge: float) -> None:
    """Set the layer's weight and bias to the minimum, in place."""
    weight, count = layer.matrix.double(), sums.tokens
    whole, part = sums.whole_mean / count, sums.kept_mean / count
    kept = sums.kept / count - part.outer(part)
    across = sums.across / count - whole.outer(part)
    diagonal = kept.diagonal()
    hold = ridge * diagonal.sum() / (diagonal > 0).sum().clamp_min(1)
    if not hold > 0:
        return
    system = kept + hold * torch.eye(len(kept), dtype=kept.dtype, device=kept.device)
    new = torch.linalg.solve(system, (weight @ across + hold * weight).t()).t()
    shift = weight @ whole - new @ part
    assert layer.bias is not None
    layer.bias.add_(shift.to(layer.bias))
    new = new.t() if layer.layout == "transposed" else new
    layer.weight.copy_(new.reshape(layer.weight.shape).to(layer.weight))
