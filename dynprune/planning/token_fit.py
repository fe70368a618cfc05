"""Fit the predictors of gates that choose for every token, in closed form, from sums over tokens.

The tokens of all calibration inputs are too many to keep. What is fitted needs their second moments
alone: of the tokens, and of the tokens with the importance of the neurons.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from dynprune.example import Example
from dynprune.gate.binding import Binding
from dynprune.gate.call import Observation, observing
from dynprune.gate.inject import gates
from dynprune.gate.linear import DynamicLinear
from dynprune.gate.neuron_gate import NeuronGate
from dynprune.gate.token_predictor import (
    ACTIVATIONS,
    LowRankPredictor,
    PreactivationPredictor,
    ProjectionPredictor,
    TokenPredictor,
)
from dynprune.host.modes import at_inference
from dynprune.host.trial import Snapshot
from dynprune.measure.moments import (
    NeuronMoments,
    bindings_of,
    dense_function,
    neurons_at,
    reach_of,
)
from dynprune.planning.importance import importance_of

__all__ = ["fit_token_predictors"]

logger = logging.getLogger(__name__)

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # over the mean square of a token's channel
RIDGE = 1e-3  # where no call can be held back
HELD_BACK = 6  # one call of so many tells which ridge is best
SPREAD_CALLS = 8  # whose tokens tell what an estimate loses


@dataclass
class _Sums:
    """Sums over tokens x, importances e and activated gate projections a, in float64.

    Attributes:
        square: (C, C) of x with x.
        across: (C, neurons) of x with e.
        inputs: (C,) of x.
        targets: (neurons,) of e.
        targets_square: (neurons,) of e squared.
        gates_square: (neurons,) of a squared.
        tokens: their number.
    """

    square: Tensor
    across: Tensor
    inputs: Tensor
    targets: Tensor
    targets_square: Tensor
    gates_square: Tensor
    tokens: int = 0

    @classmethod
    def empty(cls, features: int, neurons: int, device: torch.device) -> "_Sums":
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        lines = zeros(neurons), zeros(neurons), zeros(neurons)
        return cls(zeros(features, features), zeros(features, neurons), zeros(features), *lines)

    def add(self, x: Tensor, e: Tensor) -> None:
        """Add tokens (n, C) and what their neurons are worth (n, neurons), in place."""
        self.square += x.t() @ x
        self.across += x.t() @ e
        self.inputs += x.sum(0, dtype=torch.float64)
        self.targets += e.sum(0, dtype=torch.float64)
        self.targets_square += e.square().sum(0, dtype=torch.float64)
        self.tokens += len(x)

    def plus(self, other: "_Sums") -> "_Sums":
        """Return the sums of both."""
        return _Sums(*(getattr(self, f) + getattr(other, f) for f in self.__dataclass_fields__))

    @property
    def centred(self) -> tuple[Tensor, Tensor]:
        """Means over tokens of (x - mean)(x - mean)^T and (x - mean)(e - mean)^T."""
        n = max(1, self.tokens)
        x, e = self.inputs / n, self.targets / n
        return self.square / n - x.outer(x), self.across / n - x.outer(e)


def fit_token_predictors(model: nn.Module, calls: Sequence[Example]) -> None:
    r"""Fit every predictor of the token's grain to the importance of neurons, in place.

    A neuron's importance for a token is what `dynprune.planning.importance` says of an input: by
    default :math:`e_j = |y_j - \mu_j| \, \|W_{2,j}\|`. A low-rank predictor is the ridge regression
    of e on the token, cut to its rank by the singular vectors of the fitted values; the ridge is
    the best on calls that are held back.

    A preactivation, or the projection beside a gate projection, is linear in the token already:
    its estimate is the layer's own map at the rank that loses least over the tokens, each output
    weighted by what reads it, and by the root mean square of a(g) in a gated layer.

    Args:
        model: gated; means are set. Its weights are not changed.
        calls: inputs.

    Source: reduced-rank regression, Izenman 1975.
    """
    wanted = {
        name: gate
        for name, gate in gates(model).items()
        if gate.per_token and isinstance(gate.predictor, TokenPredictor)
    }
    if not wanted:
        return
    held = {name: _of(gate) for name, gate in wanted.items()}
    used = {name: _of(gate) for name, gate in wanted.items()}
    with at_inference(model), dense_function(model):
        own = Snapshot(model)
        for place, call in enumerate(calls):
            sums = held if place % HELD_BACK == HELD_BACK - 1 else used
            with ExitStack() as stack:
                for name, gate in wanted.items():
                    stack.enter_context(_watch(model, gate, sums[name]))
                call.run(model)
            own.put_back()
    with torch.no_grad():
        for name, gate in wanted.items():
            if isinstance(gate.predictor, LowRankPredictor):
                gained = _fit_low_rank(gate, gate.predictor, used[name], held[name])
                logger.debug("%s: the token explains %.2f of its importances", name, gained)
            elif isinstance(gate.predictor, PreactivationPredictor):
                _fit_preactivation(model, gate, gate.predictor, used[name].plus(held[name]))
            elif isinstance(gate.predictor, ProjectionPredictor):
                _fit_projection(model, gate, gate.predictor, used[name].plus(held[name]))
            if gate.config.mode == "value":
                gate.beta.zero_()
    _measure_spread(model, calls[:SPREAD_CALLS])


def _of(gate: NeuronGate) -> _Sums:
    assert isinstance(gate.predictor, TokenPredictor)
    return _Sums.empty(gate.predictor.in_features, gate.neurons, gate.prior.device)


@contextmanager
def _watch(model: nn.Module, gate: NeuronGate, sums: _Sums) -> Iterator[None]:
    """Add up the tokens of every call while the block runs."""
    seen: list[Observation] = []
    reach = reach_of(model, gate)
    (layer, binding), *_ = bindings_of(model, gate, "reads")

    def note(observation: Observation) -> None:
        if observation.neurons is gate.members:
            seen[:] = [observation]

    def before(module: DynamicLinear, args: tuple[Tensor, ...]) -> None:
        (observation,) = seen
        y = neurons_at(module, args[0], binding, gate).flatten(0, 1)  # (tokens, neurons, m)
        x = observation.tokens.squeeze(1)
        if observation.real is not None:
            real = observation.real.flatten().bool()
            x, y = x[real], y[real]
        x, y = x.float(), y.float()
        moments = NeuronMoments(y.mean(2), y.square().sum(2), None, x, reach)
        sums.add(x, importance_of(gate, moments))

    def after(_module: nn.Module, _args: object, output: Tensor) -> None:
        assert isinstance(gate.predictor, ProjectionPredictor)
        size = ACTIVATIONS[gate.predictor.activation](output).square()
        sums.gates_square += size.flatten(0, -2).sum(0, dtype=torch.float64)

    handles = [layer.register_forward_pre_hook(before)]
    if isinstance(gate.predictor, ProjectionPredictor):
        handles.append(bindings_of(model, gate, "makes")[0][0].register_forward_hook(after))
    try:
        with observing(note):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _fit_low_rank(gate: NeuronGate, predictor: LowRankPredictor, used: _Sums, held: _Sums) -> float:
    """Fit a linear predictor of importances, in place; return the share that it explains."""
    ridge = _best_ridge(used, held) if held.tokens else RIDGE
    sums = used.plus(held)
    square, across = sums.centred
    slope = _ridge_solution(square, across, ridge)
    n = max(1, sums.tokens)
    variance = (sums.targets_square / n - (sums.targets / n).square()).clamp_min(0.0)
    unit = variance.mean().sqrt().clamp_min(1e-12)  # scores of about 1, whatever the layer
    down, up = _reduced(square, slope / unit, predictor.down.out_features)
    _put(predictor, down, up, -(up @ (down @ (sums.inputs / n))))
    mean = sums.targets / n / unit
    gate.prior.copy_(mean - mean.mean())
    return _explained(slope, square, across, variance.sum())


def _best_ridge(used: _Sums, held: _Sums) -> float:
    square, across = used.centred
    there_square, there_across = held.centred
    gains = {}
    for ridge in RIDGES:
        slope = _ridge_solution(square, across, ridge)
        gains[ridge] = _explained(slope, there_square, there_across, torch.ones(()))
    return max(gains, key=lambda ridge: gains[ridge])


def _ridge_solution(square: Tensor, across: Tensor, ridge: float) -> Tensor:
    """Return the slope (C, neurons) of a ridge regression."""
    hold = (ridge * square.diagonal().mean()).clamp_min(1e-12)
    eye = torch.eye(len(square), dtype=square.dtype, device=square.device)
    return torch.linalg.solve(square + hold * eye, across)


def _explained(slope: Tensor, square: Tensor, across: Tensor, whole: Tensor) -> float:
    """Return the variance of the targets that a slope explains, over ``whole``."""
    lost = (slope * (square @ slope)).sum() - 2 * (slope * across).sum()
    return float(-lost / whole.clamp_min(1e-30))


def _reduced(square: Tensor, slope: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return down (rank, C) and up (neurons, rank): the map of that rank nearest over the tokens.

    Args:
        square: (C, C) covariance of the tokens.
        slope: (C, neurons) of the whole map.
        rank: wanted; rows of zeros make up for what the map lacks.
    """
    values, vectors = torch.linalg.eigh(square)
    root = vectors * values.clamp_min(0.0).sqrt()  # (C, C): root @ root.T is the covariance
    fitted = root.t() @ slope  # (C, neurons): its Gram matrix is that of the fitted values
    strength, left = torch.linalg.eigh(fitted @ fitted.t())
    left, strength = left.flip(1)[:, :rank], strength.flip(0)[:rank]
    right = fitted.t() @ left  # (neurons, rank), of length sqrt(strength)
    right = right / strength.clamp_min(1e-30).sqrt()
    right = right * (strength > 1e-12 * strength.max().clamp_min(1e-30))
    down = (slope @ right).t()
    balance = down.norm(dim=1).clamp_min(1e-12).sqrt()
    down, right = down / balance[:, None], right * balance
    missing = rank - len(down)
    if missing > 0:
        down = torch.cat([down, down.new_zeros(missing, down.shape[1])])
        right = torch.cat([right, right.new_zeros(len(right), missing)], 1)
    return down, right


def _put(predictor: LowRankPredictor, down: Tensor, up: Tensor, bias: Tensor) -> None:
    predictor.down.weight.copy_(down)
    predictor.up.weight.copy_(up)
    predictor.up.bias.copy_(bias)


def _fit_preactivation(
    model: nn.Module, gate: NeuronGate, predictor: PreactivationPredictor, sums: _Sums
) -> None:
    """Estimate the preactivations, in place; what that loses is measured later."""
    reach = reach_of(model, gate).double().clamp_min(1e-12)
    maker = bindings_of(model, gate, "makes")[0][0]
    _estimate(predictor.estimate, maker, reach, sums)
    if gate.mean is not None:
        predictor.center.copy_(gate.mean)
    predictor.spread.zero_()
    predictor.scale.copy_(reach / reach.mean())


def _measure_spread(model: nn.Module, calls: Sequence[Example]) -> None:
    """Set what estimates of preactivations lose, behind the activation, in place."""
    wanted = [g for g in gates(model).values() if isinstance(g.predictor, PreactivationPredictor)]
    if not wanted:
        return
    lost = {gate: torch.zeros_like(gate.prior, dtype=torch.float64) for gate in wanted}
    tokens = dict.fromkeys(wanted, 0)
    owners = {gate.members: gate for gate in wanted}
    estimates: dict[NeuronGate, Tensor] = {}

    def note(observation: Observation) -> None:
        if (gate := owners.get(observation.neurons)) is not None:
            assert isinstance(gate.predictor, PreactivationPredictor)
            y = gate.predictor.estimate(observation.tokens.squeeze(1))
            estimates[gate] = ACTIVATIONS[gate.predictor.activation](y)

    def before(gate: NeuronGate, layer: DynamicLinear, binding: Binding, x: Tensor) -> None:
        y = neurons_at(layer, x, binding, gate).flatten(0, 1).squeeze(2)
        lost[gate] += (y - estimates[gate]).square().sum(0, dtype=torch.float64)
        tokens[gate] += len(y)

    with at_inference(model), dense_function(model), ExitStack() as stack, observing(note):
        for gate in wanted:
            layer, binding = bindings_of(model, gate, "reads")[0]
            hook = partial(lambda g, p, m, args: before(g, m, p, args[0]), gate, binding)
            stack.callback(layer.register_forward_pre_hook(hook).remove)
        own = Snapshot(model)
        for call in calls:
            call.run(model)
            own.put_back()
    with torch.no_grad():
        for gate in wanted:
            assert isinstance(gate.predictor, PreactivationPredictor)
            gate.predictor.spread.copy_((lost[gate] / max(1, tokens[gate])).sqrt())


def _estimate(
    predictor: LowRankPredictor, layer: DynamicLinear, size: Tensor, sums: _Sums
) -> Tensor:
    """Estimate a layer's outputs at low rank, in place; return what is lost of its weight.

    Args:
        predictor: is fitted.
        layer: linear in the tokens.
        size: (neurons,) how much the error of each output counts.
        sums: over tokens.
    """
    square, _ = sums.centred
    mean, weight = sums.inputs / max(1, sums.tokens), layer.matrix.double()
    constant = weight @ mean if layer.bias is None else weight @ mean + layer.bias.double()
    down, up = _reduced(square, (weight * size[:, None]).t(), predictor.down.out_features)
    up = up / size[:, None]
    _put(predictor, down, up, constant - up @ (down @ mean))
    return weight - up @ down


def _fit_projection(
    model: nn.Module, gate: NeuronGate, predictor: ProjectionPredictor, sums: _Sums
) -> None:
    """Set what stands beside a gate projection, in place."""
    reach = reach_of(model, gate).double()
    n = max(1, sums.tokens)
    square, _ = sums.centred
    other = bindings_of(model, gate, "makes")[1][0]
    if predictor.estimate is None:
        weight, mean = other.matrix.double(), sums.inputs / n
        constant = weight @ mean if other.bias is None else weight @ mean + other.bias.double()
        importance = ((weight @ square) * weight).sum(1) + constant.square()
        scale = reach * importance.clamp_min(0.0).sqrt()
        predictor.scale.copy_(scale / scale.mean().clamp_min(1e-12))
        return
    size = (reach * (sums.gates_square / n).sqrt()).clamp_min(1e-12)
    lost = _estimate(predictor.estimate, other, size, sums)
    spread = ((lost @ square) * lost).sum(1).clamp_min(0.0).sqrt()
    predictor.spread.copy_(spread)
    predictor.scale.copy_(reach / (reach * spread).mean().clamp_min(1e-12))
