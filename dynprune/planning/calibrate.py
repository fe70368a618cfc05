"""Start the gates from the dense model: from its weights, or from its neurons on a few inputs."""

import logging
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dynprune.example import Example
from dynprune.gate.compensation import fold_means
from dynprune.gate.inject import gates
from dynprune.gate.neuron_gate import NeuronGate
from dynprune.gate.token_predictor import PreactivationPredictor, ProjectionPredictor
from dynprune.measure.moments import NeuronMoments, bindings_of, measure, weight_norm
from dynprune.planning.fit import fit_predictor
from dynprune.planning.importance import importance_of
from dynprune.planning.token_fit import fit_token_predictors

__all__ = ["calibrate", "start_from_weights"]

logger = logging.getLogger(__name__)

FLOOR = 1e-4  # least importance of a neuron over the mean of its group, before the logarithm


def start_from_weights(model: nn.Module) -> None:
    """Order every gate's neurons by the norms of their weights, in place.

    A neuron's weight is the product of the norms of its producer row and its consumer column;
    for queries and keys, of its two rows.
    """
    with torch.no_grad():
        for gate in gates(model).values():
            makers = [found for found in bindings_of(model, gate, "makes") if not found[1].beside]
            made = [weight_norm(layer, binding, 1) for layer, binding in makers]
            read = [
                weight_norm(layer, binding, 0)
                for layer, binding in bindings_of(model, gate, "reads")
            ]
            if isinstance(
                gate.predictor, PreactivationPredictor | ProjectionPredictor
            ):  # orders by what it reads
                gate.predictor.scale.copy_(torch.stack(read).norm(dim=0))
                continue
            weight = made[0] * (made[-1] if gate.kind == "qk" else torch.stack(read).norm(dim=0))
            _set_base_scores(gate, weight[None])


def calibrate(model: nn.Module, calls: Iterable[Example], *, dynamic: bool = True) -> int:
    """Start order, means and predictors from what the dense model does on a few inputs, in place.

    No neuron's value changes: a predictor orders the neurons from now on, and how strongly it moves
    their values (beta) is left to training. Where the input explains nothing it is zero.

    Args:
        model: gated; its weights are not changed.
        calls: inputs, about 32 in all.
        dynamic: fit each predictor to every input's own importances, too.

    Returns:
        The inputs that were measured.

    Raises:
        UsageError: where ``calls`` is empty.

    Source: the order and the means are those of Variance-Based Pruning, arXiv 2507.12988.
    """
    calls = list(calls)
    measured = measure(model, calls)
    try:
        for name, moments in measured.items():
            _start(gates(model)[name], moments, dynamic=dynamic)
        if dynamic:  # measured by another run: it needs the means
            fit_token_predictors(model, calls)
    finally:  # a mean that is not in its offset would be taken for trained weights
        fold_means(model)
    return max((len(moments.first) for moments in measured.values()), default=0)


def _start(gate: NeuronGate, moments: NeuronMoments, *, dynamic: bool) -> None:
    """Start one gate from what its neurons did, in place."""
    with torch.no_grad():
        if gate.mean is not None:
            gate.mean.copy_(moments.first.mean(0))
        if isinstance(gate.predictor, PreactivationPredictor | ProjectionPredictor):
            return
        residual = _set_base_scores(gate, importance_of(gate, moments))
        if gate.per_token:
            return
        if dynamic and gate.predictor is not None and len(moments.first) > 3:
            usual = residual.mean(0)  # what all inputs share belongs to the base scores
            gate.prior.add_(usual)
            gained = fit_predictor(gate.predictor, moments.summaries, residual - usual)
            logger.debug("%s: the input explains %.2f of their importance", gate.name, gained)
            if gained > 0 and gate.config.mode == "value":
                gate.beta.zero_()


def _set_base_scores(gate: NeuronGate, importance: Tensor) -> Tensor:
    """Set the order from (n, neurons) importances, in place; give the logarithms left over."""
    usual = importance.square().mean(0).sqrt()
    floor = FLOOR * usual.mean().clamp_min(1e-12)
    prior = usual.clamp_min(floor).log()
    if gate.config.order == "prefix":
        gate.prior.copy_(-torch.arange(gate.neurons, dtype=gate.prior.dtype))
    elif gate.config.order == "random":
        generator = torch.Generator().manual_seed(gate.neurons)
        gate.prior.copy_(torch.rand(gate.neurons, generator=generator))
    else:
        gate.prior.copy_(prior - prior.mean())
    return importance.clamp_min(floor).log() - prior
