"""What the neurons of the gated groups do on a few inputs, and how strongly they are read."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dynprune.errors import InputError, UsageError
from dynprune.example import Example
from dynprune.gate.binding import Binding
from dynprune.gate.call import Observation, observing
from dynprune.gate.execution import set_execution
from dynprune.gate.inject import gates
from dynprune.gate.instances import to_instances
from dynprune.gate.linear import DynamicLinear
from dynprune.gate.neuron_gate import NeuronGate
from dynprune.gate.predictor import pool_tokens
from dynprune.host.modes import at_inference
from dynprune.host.progress import reported
from dynprune.host.trial import Snapshot

__all__ = [
    "NeuronMoments",
    "bindings_of",
    "dense_function",
    "measure",
    "neurons_at",
    "reach_of",
    "weight_norm",
]


@dataclass
class NeuronMoments:
    """What a group's neurons did on each of n inputs.

    Attributes:
        first: (n, neurons) mean over the tokens, at the consumer's input (keys for ``qk``).
        second: (n, neurons) mean of squares, likewise.
        queries: (n, neurons) mean of squares of the queries; None except for ``qk``.
        summaries: (n, features) pooled inputs of the gate; none where every token chooses.
        consumer_norm: (neurons,) norm of each neuron's columns in its consumers; ones for ``qk``.
    """

    first: Tensor
    second: Tensor
    queries: Tensor | None
    summaries: Tensor
    consumer_norm: Tensor

    def importance(self, mean: Tensor | None) -> Tensor:
        """Return (n, neurons): how far the output moves when a neuron is skipped.

        Args:
            mean: what replaces skipped neurons; zero where None.
        """
        if self.queries is not None:  # a key's mean over tokens cancels in the softmax
            spread = (self.second - self.first.square()).clamp_min(0.0)
            return (self.queries * spread).sqrt()
        square = self.second
        if mean is not None:
            mean = mean.to(square)  # its square may leave the range of halves
            square = (square - 2 * mean * self.first + mean.square()).clamp_min(0.0)
        return square.sqrt() * self.consumer_norm


@dataclass
class _Tally:
    first: list[Tensor] = field(default_factory=list)
    second: list[Tensor] = field(default_factory=list)
    queries: list[Tensor] = field(default_factory=list)
    summaries: list[Tensor] = field(default_factory=list)


def measure(model: nn.Module, calls: Iterable[Example]) -> dict[str, NeuronMoments]:
    """Run the dense function on every call and give each group's moments.

    Raises:
        UsageError: where ``calls`` is empty.
        InputError: where the dense model computes what is no finite number.
    """
    tallies = {name: _Tally() for name in gates(model)}
    by_members = {gate.members: name for name, gate in gates(model).items()}

    def summarise(seen: Observation) -> None:
        if (name := by_members.get(seen.neurons)) is not None and not seen.neurons.per_token:
            pool = gates(model)[name].config.pool
            tallies[name].summaries.append(pool_tokens(seen.tokens, pool, seen.real))

    with (
        at_inference(model),
        dense_function(model),
        observing(summarise),
        ExitStack() as stack,
    ):
        for name, gate in gates(model).items():
            stack.enter_context(_watch(model, gate, tallies[name]))
        count, own = 0, Snapshot(model)
        for call in reported("calibrate", calls):
            call.run(model)
            own.put_back()
            count += 1
            _check_finite(tallies, count)
    if not count:
        raise UsageError("Calibration needs at least one input, got none.")
    return {
        name: NeuronMoments(
            first=torch.cat(tally.first),
            second=torch.cat(tally.second),
            queries=torch.cat(tally.queries) if tally.queries else None,
            summaries=torch.cat(tally.summaries or [torch.empty(0)]),
            consumer_norm=reach_of(model, gates(model)[name]),
        )
        for name, tally in tallies.items()
    }


def _check_finite(tallies: Mapping[str, _Tally], count: int) -> None:
    """Refuse what the latest call did where it is infinite or no number: no order is in it."""
    for name, tally in tallies.items():
        if not all(bool(seen[-1].isfinite().all()) for seen in (tally.first, tally.second) if seen):
            raise InputError(
                f"Calibration call {count} of the model makes infinite or undefined numbers in "
                f"{name}, which say nothing of its neurons. Leave that input out, or give the "
                "model in a type of a wider range."
            )


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
            gate.set_prune_ratio(ratio)


@contextmanager
def _watch(model: nn.Module, gate: NeuronGate, tally: _Tally) -> Iterator[None]:
    handles = []
    if gate.kind == "qk":
        bindings = [found for found in bindings_of(model, gate, "makes") if not found[1].beside]
        for (layer, binding), column, into in (
            (bindings[0], 0, tally.queries),
            (bindings[-1], -1, None),
        ):

            def after(
                module: DynamicLinear,
                _args: tuple[Tensor, ...],
                y: Tensor,
                binding: Binding = binding,
                column: int = column,
                into: list[Tensor] | None = into,
            ) -> None:
                tokens = neurons_at(module, y, binding, gate)[..., column]
                if into is not None:
                    into.append(_over_tokens(tokens.square(), gate))
                else:
                    tally.first.append(_over_tokens(tokens, gate))
                    tally.second.append(_over_tokens(tokens.square(), gate))

            handles.append(layer.register_forward_hook(after))
    else:
        layer, binding = bindings_of(model, gate, "reads")[0]

        def before(module: DynamicLinear, args: tuple[Tensor, ...]) -> None:
            tokens = neurons_at(module, args[0], binding, gate)
            tally.first.append(_over_tokens(tokens.mean(3), gate))
            tally.second.append(_over_tokens(tokens.square().sum(3), gate))

        handles.append(layer.register_forward_pre_hook(before))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def neurons_at(layer: DynamicLinear, x: Tensor, binding: Binding, gate: NeuronGate) -> Tensor:
    """Return (B, T, neurons, m): a layer's input or output, neuron by neuron."""
    if layer.layout == "pointwise":
        x = x.movedim(1, -1)
    x = x.to(torch.promote_types(x.dtype, torch.float32))  # squares leave the range of halves
    call = gate.members.scope.current()
    batch = call.selection(gate.members).batch
    if gate.per_token:
        batch = call.instances if gate.layout.folded else x.shape[gate.layout.axis]
    tokens = to_instances(x, batch, gate.layout)
    return (
        tokens[..., None] if binding.index is None else tokens[..., getattr(layer, binding.index)]
    )


def _over_tokens(x: Tensor, gate: NeuronGate) -> Tensor:
    """Average (B, T, neurons) over the tokens that are not padding, (B, neurons)."""
    real = gate.members.scope.current().real(x)
    if real is None:
        return x.mean(1)
    weight = real.to(x.dtype)[..., None]
    return (x * weight).sum(1) / weight.sum(1).clamp_min(1.0)


def bindings_of(
    model: nn.Module, gate: NeuronGate, side: str
) -> list[tuple[DynamicLinear, Binding]]:
    """Return the layers that make or read a gate's neurons, in the order of the group's record."""
    return [
        (layer, binding)
        for layer in model.modules()
        if isinstance(layer, DynamicLinear)
        for binding in getattr(layer, side)
        if binding.neurons is gate.members
    ]


def weight_norm(layer: DynamicLinear, binding: Binding, dim: int) -> Tensor:
    """Return each neuron's weight norm in a layer: of its rows (dim 1) or its columns (dim 0)."""
    matrix = layer.matrix.detach()
    square = matrix.to(torch.promote_types(matrix.dtype, torch.float32)).square().sum(dim)
    if binding.index is not None:
        square = square[getattr(layer, binding.index)].sum(-1)
    return square.sqrt()


def reach_of(model: nn.Module, gate: NeuronGate) -> Tensor:
    """Return (neurons,): norm of each neuron's columns in its consumers; ones for ``qk``."""
    if gate.kind == "qk":
        return torch.ones_like(gate.prior)
    norms = [weight_norm(layer, binding, 0) for layer, binding in bindings_of(model, gate, "reads")]
    return torch.stack(norms).norm(dim=0)
