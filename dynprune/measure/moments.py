"""Start the gates from the dense model: from its weights, or from its neurons on a few inputs."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.gate.execution import set_execution
from dynprune.gate.fit import fit_predictor
from dynprune.gate.inject import gates
from dynprune.gate.instances import to_instances
from dynprune.gate.linear import DynamicLinear, Port
from dynprune.gate.neuron_gate import NeuronGate
from dynprune.modes import at_inference

__all__ = ["NeuronMoments", "calibrate", "dense_function", "measure", "start_from_weights"]

logger = logging.getLogger(__name__)

FLOOR = 1e-4  # least energy of a neuron over the mean of its group, before the logarithm


@dataclass
class NeuronMoments:
    """What a group's neurons did on each of n inputs.

    Attributes:
        first: (n, neurons) mean over the tokens, at the consumer's input (keys for ``qk``).
        second: (n, neurons) mean of squares, likewise.
        queries: (n, neurons) mean of squares of the queries; None except for ``qk``.
        summaries: (n, features) pooled inputs of the gate.
        reach: (neurons,) norm of each neuron's columns in its consumers; ones for ``qk``.
    """

    first: Tensor
    second: Tensor
    queries: Tensor | None
    summaries: Tensor
    reach: Tensor

    def energy(self, mean: Tensor | None) -> Tensor:
        """Give (n, neurons): how far the output moves when a neuron is skipped.

        Args:
            mean: where skipped neurons stand; zero where None.
        """
        if self.queries is not None:  # a key's mean over tokens cancels in the softmax
            spread = (self.second - self.first.square()).clamp_min(0.0)
            return (self.queries * spread).sqrt()
        square = self.second
        if mean is not None:
            square = (square - 2 * mean * self.first + mean.square()).clamp_min(0.0)
        return square.sqrt() * self.reach


@dataclass
class _Tally:
    first: list[Tensor] = field(default_factory=list)
    second: list[Tensor] = field(default_factory=list)
    queries: list[Tensor] = field(default_factory=list)


def start_from_weights(model: nn.Module) -> None:
    """Order every gate's neurons by the norms of their weights, in place.

    A neuron's weight is the product of the norms of its producer row and its consumer column;
    for queries and keys, of its two rows.
    """
    with torch.no_grad():
        for gate in gates(model).values():
            made = [_norm(layer, port, 1) for layer, port in _ports(model, gate, "makes")]
            read = [_norm(layer, port, 0) for layer, port in _ports(model, gate, "reads")]
            weight = made[0] * (made[-1] if gate.kind == "qk" else torch.stack(read).norm(dim=0))
            _set_prior(gate, weight[None])


def calibrate(model: nn.Module, calls: Iterable[Example], *, dynamic: bool = True) -> int:
    """Start order, means and predictors from what the dense model does on a few inputs, in place.

    Args:
        model: gated; its weights are not changed.
        calls: inputs, about 32 in all.
        dynamic: fit each predictor to every input's own energies, too.

    Returns:
        The inputs that were measured.

    Raises:
        UsageError: where ``calls`` is empty.

    Source: the order and the means are those of Variance-Based Pruning, arXiv 2507.12988.
    """
    inputs = 0
    for name, moments in measure(model, calls).items():
        gate = gates(model)[name]
        inputs = len(moments.first)
        with torch.no_grad():
            if gate.mean is not None:
                gate.mean.copy_(moments.first.mean(0))
            energy = moments.energy(gate.mean)
            residual = _set_prior(gate, energy)
            if dynamic and gate.predictor is not None and inputs > 3:
                gained = fit_predictor(gate.predictor, moments.summaries, residual)
                logger.debug("%s: the input explains %.2f of its energies", name, gained)
                if gained > 0 and gate.config.mode == "value":
                    gate.beta.fill_(1e-3)
    return inputs


def measure(model: nn.Module, calls: Iterable[Example]) -> dict[str, NeuronMoments]:
    """Run the dense function on every call and give each group's moments.

    Raises:
        UsageError: where ``calls`` is empty.
    """
    tallies = {name: _Tally() for name in gates(model)}
    summaries: dict[str, Tensor] = {}
    with at_inference(model), dense_function(model), ExitStack() as stack:
        for name, gate in gates(model).items():
            gate.state.summaries = []
            stack.enter_context(_watch(model, gate, tallies[name]))
        count = 0
        for call in calls:
            call.run(model)
            count += 1
        for name, gate in gates(model).items():
            summaries[name] = torch.cat(gate.state.summaries or [torch.empty(0)])
            gate.state.summaries = None
    if not count:
        raise UsageError("Calibration needs at least one input, got none.")
    return {
        name: NeuronMoments(
            first=torch.cat(tally.first),
            second=torch.cat(tally.second),
            queries=torch.cat(tally.queries) if tally.queries else None,
            summaries=summaries[name],
            reach=_reach(model, gates(model)[name]),
        )
        for name, tally in tallies.items()
    }


@contextmanager
def dense_function(model: nn.Module) -> Iterator[None]:
    """Let every gate keep everything for a while, in place."""
    before = {name: (g.prune_ratio, g.requested) for name, g in gates(model).items()}
    try:
        for gate in gates(model).values():
            gate.set_prune_ratio(0.0)
        set_execution(model, "masked")
        yield
    finally:
        for name, gate in gates(model).items():
            ratio, gate.requested = before[name]
            gate.state.summaries = None
            gate.set_prune_ratio(ratio)


@contextmanager
def _watch(model: nn.Module, gate: NeuronGate, tally: _Tally) -> Iterator[None]:
    handles = []
    if gate.kind == "qk":
        ports = _ports(model, gate, "makes")
        for (layer, port), column, into in (
            (ports[0], 0, tally.queries),
            (ports[-1], -1, None),
        ):

            def after(
                module: DynamicLinear,
                _args: tuple[Tensor, ...],
                y: Tensor,
                port: Port = port,
                column: int = column,
                into: list[Tensor] | None = into,
            ) -> None:
                tokens = _neurons(module, y, port, gate)[..., column]
                if into is not None:
                    into.append(_over_tokens(tokens.square(), gate))
                else:
                    tally.first.append(_over_tokens(tokens, gate))
                    tally.second.append(_over_tokens(tokens.square(), gate))

            handles.append(layer.register_forward_hook(after))
    else:
        layer, port = _ports(model, gate, "reads")[0]

        def before(module: DynamicLinear, args: tuple[Tensor, ...]) -> None:
            tokens = _neurons(module, args[0], port, gate)
            tally.first.append(_over_tokens(tokens.mean(3), gate))
            tally.second.append(_over_tokens(tokens.square().sum(3), gate))

        handles.append(layer.register_forward_pre_hook(before))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _neurons(layer: DynamicLinear, x: Tensor, port: Port, gate: NeuronGate) -> Tensor:
    """Give (B, T, neurons, m): a layer's input or output, neuron by neuron."""
    if layer.layout == "pointwise":
        x = x.movedim(1, -1)
    tokens = to_instances(x, gate.selection.index.shape[0], gate.layout)
    return tokens[..., None] if port.index is None else tokens[..., getattr(layer, port.index)]


def _over_tokens(x: Tensor, gate: NeuronGate) -> Tensor:
    """Average (B, T, neurons) over the tokens that are not padding, (B, neurons)."""
    real = gate.real_tokens(x)
    if real is None:
        return x.mean(1)
    weight = real.to(x.dtype)[..., None]
    return (x * weight).sum(1) / weight.sum(1).clamp_min(1.0)


def _ports(model: nn.Module, gate: NeuronGate, side: str) -> list[tuple[DynamicLinear, Port]]:
    """Give the layers that make or read a gate's neurons, in the order of the group's record."""
    return [
        (layer, port)
        for layer in model.modules()
        if isinstance(layer, DynamicLinear)
        for port in getattr(layer, side)
        if port.gate is gate
    ]


def _norm(layer: DynamicLinear, port: Port, dim: int) -> Tensor:
    """Give each neuron's weight norm in a layer: of its rows (dim 1) or its columns (dim 0)."""
    square = layer.matrix.detach().square().sum(dim)
    if port.index is not None:
        square = square[getattr(layer, port.index)].sum(-1)
    return square.sqrt()


def _reach(model: nn.Module, gate: NeuronGate) -> Tensor:
    if gate.kind == "qk":
        return torch.ones_like(gate.prior)
    norms = [_norm(layer, port, 0) for layer, port in _ports(model, gate, "reads")]
    return torch.stack(norms).norm(dim=0)


def _set_prior(gate: NeuronGate, energy: Tensor) -> Tensor:
    """Set the order from (n, neurons) energies, in place; give the logarithms left over."""
    usual = energy.square().mean(0).sqrt()
    floor = FLOOR * usual.mean().clamp_min(1e-12)
    prior = usual.clamp_min(floor).log()
    if gate.config.order == "prefix":
        gate.prior.copy_(-torch.arange(gate.neurons, dtype=gate.prior.dtype))
    elif gate.config.order == "random":
        generator = torch.Generator().manual_seed(gate.neurons)
        gate.prior.copy_(torch.rand(gate.neurons, generator=generator))
    else:
        gate.prior.copy_(prior - prior.mean())
    return energy.clamp_min(floor).log() - prior
