"""Refit what reads the neurons layer by layer, on what the pruned layers before really give."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from dynprune.example import Example
from dynprune.gate.execution import set_execution
from dynprune.gate.inject import gates
from dynprune.gate.instances import to_instances
from dynprune.gate.linear import DynamicLinear
from dynprune.host.failures import reraise_ours
from dynprune.host.modes import at_inference
from dynprune.host.outputs import relative_error, values_of
from dynprune.host.resume import Given, Resumer
from dynprune.host.trial import Snapshot
from dynprune.measure.moments import dense_function
from dynprune.planning.expert_seats import ExpertSeat, active, seat_of, seated
from dynprune.planning.least_squares import RIDGE, Moments
from dynprune.planning.refit import Weights, fit_consumers, put, refit_consumers, weights_of
from dynprune.planning.stream import Added, Seen, correction, watching
from dynprune.rewrite.overwritten import overwriting

__all__ = ["Refit", "outputs_on", "refit_in_sequence"]

logger = logging.getLogger(__name__)

HELD_BACK = 8  # one call of so many, and one at least, tells which fit is better
LEAST_CALLS = 3
BETTER = 0.999  # error over error: what differs by less differs by rounding


@dataclass(frozen=True)
class Refit:
    """What refitting did.

    Attributes:
        layers: consumers that were refitted.
        in_sequence: whether they were in sequence; else each on the dense model's activations.
        one_shot_error: of the output on calls that were held back, each layer fitted on its own:
            squared difference to the dense one over its squared norm; None where none were.
        sequential_error: likewise, fitted in sequence.
    """

    layers: int
    in_sequence: bool
    one_shot_error: float | None
    sequential_error: float | None


def refit_in_sequence(
    model: nn.Module,
    calls: Sequence[Example],
    *,
    ridge: float = RIDGE,
    seats: Sequence[ExpertSeat] = (),
) -> Refit:
    r"""Refit every consumer in the order in which they run, in place.

    Each is fitted on what it reads once all before it are pruned and refitted, and aims at the
    dense residual stream s behind it:

    .. math:: \min_{W', b'} \; \mathrm{mean} \, \| s - r_p - L(W' z_p + b') \|^2
        + \lambda \| W' - W \|^2

    with z_p its masked input and r_p the stream that its output is added to in the pruned model,
    and L what happens on the way to the addition (a scale for each channel, another shape). Where
    nothing is added it aims at its own dense output. So errors of earlier layers are corrected
    rather than carried on. One call in eight is held back; if the output of these is no nearer to
    the dense one than with `refit_consumers`, that is what stands.

    Every call runs about four times, a block at a time, not once for each layer. For each call the
    outputs of at most three blocks are kept, of the dense and the pruned model.

    Args:
        model: gated and calibrated; order, means and predictors stay.
        calls: inputs, about 32 in all; of fewer than three none can be held back, and
            `refit_consumers` is all that is done.
        ridge: lambda, over the mean square of a kept neuron.
        seats: groups whose consumers are those of experts, which are refitted instead.

    Raises:
        UsageError: where ``calls`` is empty.

    Source: layer-wise reconstruction on the pruned layers' own inputs as in GPTQ, arXiv 2210.17323;
    the target that corrects earlier errors is ours.
    """
    if len(calls) < LEAST_CALLS:
        logger.warning(
            "Of %d inputs none can be held back to tell whether refitting in sequence is better: "
            "each layer is refitted on its own.",
            len(calls),
        )
        return Refit(refit_consumers(model, calls, ridge=ridge), False, None, None)
    held = list(calls[HELD_BACK - 1 :: HELD_BACK] or calls[-1:])
    fitted = [call for call in calls if not any(call is other for other in held)]
    layers = _consumers(model)
    parameters = [p for layer in layers for p in (layer.weight, layer.bias) if p is not None]
    with overwriting(model, parameters), seated(model, seats):
        before = weights_of(layers)
        with at_inference(model):
            with dense_function(model):
                wanted = outputs_on(model, held)
            put(fit_consumers(model, fitted, ridge=ridge))
            with _pruned(model, seats):
                one_shot_error = relative_error(outputs_on(model, held), wanted)
            one_shot = weights_of(layers)
            put(before)
            readers = [seat.forget() for seat in seats]
            in_sequence = _Sequence(model, layers, fitted, ridge, seats).run()
            put(in_sequence)
            with _pruned(model, seats):
                sequential_error = relative_error(outputs_on(model, held), wanted)
        better = sequential_error < BETTER * one_shot_error
        if not better:
            for seat, own in zip(seats, readers, strict=True):
                seat.draft.readers = own
            put(before)
            one_shot = fit_consumers(model, calls, ridge=ridge)
            put(one_shot)
    logger.info(
        "Refitted in sequence, the output of %d inputs that were held back is off by %.3g, each "
        "layer on its own by %.3g: %s.",
        sum(call.batch for call in held),
        sequential_error,
        one_shot_error,
        "the former is kept" if better else "the latter is kept",
    )
    count = len(in_sequence) if better else len(one_shot)
    return Refit(count, better, one_shot_error, sequential_error)


def _consumers(model: nn.Module) -> list[DynamicLinear]:
    """Return the layers that read gated neurons."""
    own = {gate.members for gate in gates(model).values()}
    return [
        layer
        for layer in model.modules()
        if isinstance(layer, DynamicLinear) and any(b.neurons in own for b in layer.reads)
    ]


class _Sequence:
    """One pass through the consumers of a model.

    Args:
        model: gated, at inference.
        layers: its consumers, with their dense weights.
        calls: to fit on.
        ridge: of the least squares.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[DynamicLinear],
        calls: Sequence[Example],
        ridge: float,
        seats: Sequence[ExpertSeat] = (),
    ) -> None:
        self.model, self.calls, self.ridge = model, calls, ridge
        self.seats, self.seat_of = seats, seat_of(seats, model)
        self.dense = weights_of(layers)
        self.new: Weights = {}
        with _pruned(model, seats):  # heads of full width, as in every run
            self.state = Snapshot(model)
        self.resumer = Resumer(model)
        self.order = self._order(layers)
        self.producers = _producers(model)
        self.given = {side: [Given() for _ in calls] for side in ("dense", "pruned")}

    def run(self) -> Weights:
        """Return the new weights of the layers; the model has its dense ones again."""
        most = 0
        for place, layer in enumerate(self.order):
            later = self.order[place + 1 :]
            until = {layer, *(p for other in later for p in self.producers[other]), *later}
            with dense_function(self.model):
                dense = [(s.output, s.added) for s in self._all(layer, "dense", until)]
            put(self.new)
            moments = Moments.empty(layer.in_features, layer.out_features, layer.weight.device)
            with _pruned(self.model, self.seats):
                for wanted, found in zip(dense, self._all(layer, "pruned", until), strict=True):
                    target = _target(layer, *wanted, found)
                    if layer in self.seat_of:
                        seat, name = self.seat_of[layer]
                        seat.add(name, target)
                    else:
                        _add(moments, layer, target, found)
            most = max(most, sum(g.size for side in self.given.values() for g in side))
            put({other: self.dense[other] for other in self.new})
            if layer in self.seat_of:
                seat, name = self.seat_of[layer]
                seat.draft.solve_one(name, ridge=self.ridge)
            else:
                self._solve(layer, moments)
        logger.info("Refitting kept %.0f MB of activations at once.", most / 1e6)
        return self.new

    def _order(self, layers: Sequence[DynamicLinear]) -> list[DynamicLinear]:
        """Return the layers that run once in a call, in the order in which they do."""
        ran: list[DynamicLinear] = []
        handles = [
            layer.register_forward_pre_hook(lambda module, _args: ran.append(module))
            for layer in layers
        ]
        try:
            with dense_function(self.model):
                self.calls[0].run(self.model)
                self.state.put_back()
        finally:
            for handle in handles:
                handle.remove()
        return [layer for layer in ran if ran.count(layer) == 1]

    def _all(self, layer: DynamicLinear, side: str, until: set[DynamicLinear]) -> Iterator[Seen]:
        """Run all calls to where a layer's output is added, one by one."""
        whole = False
        for call, given in zip(self.calls, self.given[side], strict=True):
            seen = None
            if not whole:
                seen = self._tried(layer, call, given, until)
            if seen is None:
                whole = True
                seen = self._seen(layer, call, given, until, whole=True)
            yield seen

    def _tried(
        self, layer: DynamicLinear, call: Example, given: Given, until: set[DynamicLinear]
    ) -> Seen | None:
        """Run a call from where it was left; None where what is no longer kept takes part."""
        try:
            seen = self._seen(layer, call, given, until, whole=False)
        except Exception as error:  # the host's own code, where modules of it do not run
            reraise_ours(error)
            logger.debug("What ran before cannot be given again: %s", error)
            return None
        return seen if seen.is_finite else None

    def _seen(
        self,
        layer: DynamicLinear,
        call: Example,
        given: Given,
        until: set[DynamicLinear],
        *,
        whole: bool,
    ) -> Seen:
        with watching(layer) as seen:
            self.resumer.run(call, given, until, whole=whole)
        self.state.put_back()
        return seen()

    def _solve(self, layer: DynamicLinear, moments: Moments) -> None:
        weight, constant = self.dense[layer]
        has_bias = layer.bias is not None
        found = moments.solve(layer.matrix, self.ridge, bias=has_bias)
        if found is None:
            return
        matrix, bias = found
        if has_bias and layer.offset is not None:
            bias = bias - layer.offset.double()
        shaped = matrix.t() if layer.layout == "transposed" else matrix
        new = shaped.reshape(weight.shape).to(weight)
        self.new[layer] = new, None if constant is None else bias.to(constant)


def _producers(model: nn.Module) -> dict[DynamicLinear, list[DynamicLinear]]:
    """Return, for every layer, those that make the neurons which it reads."""
    layers = [layer for layer in model.modules() if isinstance(layer, DynamicLinear)]
    makers: dict[object, list[DynamicLinear]] = {}
    for layer in layers:
        for binding in layer.makes:
            makers.setdefault(binding.neurons, []).append(layer)
    return {
        layer: [maker for binding in layer.reads for maker in makers.get(binding.neurons, [])]
        for layer in layers
    }


def _target(layer: DynamicLinear, output: Tensor, added: Added | None, pruned: Seen) -> Tensor:
    """Return what a layer should give in the pruned model, (B, T, outputs).

    Args:
        layer: that is refitted.
        output: of it in the dense model.
        added: where that was added.
        pruned: what it does in the pruned model.
    """
    target = output + correction(output, added, pruned.added)
    target = target.movedim(1, -1) if layer.layout == "pointwise" else target
    return to_instances(target, len(pruned.z), layer.reads[0].neurons.layout)


def _add(moments: Moments, layer: DynamicLinear, target: Tensor, pruned: Seen) -> None:
    """Add the moments of one call, in place."""
    if layer.bias is None and layer.offset is not None:  # of what is constant the offset alone
        target = target - layer.offset
    z, t = pruned.z, target
    if pruned.real is not None:
        z, t = z[pruned.real.bool()], t[pruned.real.bool()]
    moments.add(z.flatten(0, -2), t.flatten(0, -2))


@contextmanager
def _pruned(model: nn.Module, seats: Sequence[ExpertSeat] = ()) -> Iterator[None]:
    """Let every gate run masked for a while, in place."""
    before = {name: gate.requested for name, gate in gates(model).items()}
    try:
        set_execution(model, "masked")
        with active(seats):
            yield
    finally:
        for name, gate in gates(model).items():
            gate.requested = before[name]
            gate.sync()


def outputs_on(model: nn.Module, calls: Sequence[Example]) -> list[Tensor]:
    """Return what a model gives for calls, one after another, each from the same state."""
    state, found = Snapshot(model), list[Tensor]()
    for call in calls:
        found += values_of(call.run(model))
        state.put_back()
    return found
