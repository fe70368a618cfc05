"""Laws that hold a gated model to the dense one, and its fast form to its plain form."""

import copy
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from dynprune.example import Example
from dynprune.gate import gates, set_execution, set_prune_ratio
from dynprune.gate.route import has_experts
from dynprune.laws.calls import floats, resized
from dynprune.laws.judge import differences
from dynprune.laws.subject import Case, NotTriedError, Subject, answer

__all__ = [
    "another_size",
    "autocast",
    "compact_equals_masked",
    "double_precision",
    "half_precision",
    "more_outputs",
    "nothing_skipped",
    "values_are_trained",
]

RATIOS = (None, 0.25, 0.75)
"""Shares that are skipped in turn; None as the model stands."""

REWRITTEN = 1e-6
"""Rounding of weights that a rewrite has worked out in float32."""

UNTRAINED = (0.0, 1e-3, 1.0)
"""Values of a gate's beta that nobody trained."""


def nothing_skipped(subject: Subject) -> Iterator[Case]:
    """With nothing skipped, a gated model gives what the dense model gives."""
    _require_plain_values(subject)
    for label, call in _calls(subject):
        wanted = partial(subject.run, call, subject.dense)
        yield Case(label, partial(_dense_function, subject, call), wanted)
        yield Case(f"{label}, masked", partial(_dense_function, subject, call, True), wanted)


def compact_equals_masked(subject: Subject) -> Iterator[Case]:
    """Computing the kept neurons alone gives what computing all and zeroing the others gives."""
    for label, call in _calls(subject):
        for ratio in RATIOS:
            named = label if ratio is None else f"{label}, {ratio:.0%} skipped"
            yield Case(
                named,
                partial(_at, subject, call, ratio),
                partial(_at, subject, call, ratio, masked=True),
            )


def another_size(subject: Subject) -> Iterator[Case]:
    """The two laws above hold at other sizes of pictures and lengths of sequences."""
    trained = values_are_trained(subject.model)
    subject = subject.apart()  # Swin, for one, shrinks its windows for good on small pictures
    for label, call in resized(subject.batch):
        if not trained:
            yield Case(
                f"{label}, nothing skipped",
                partial(_dense_function, subject, call),
                partial(subject.run, call, subject.dense),
            )
        yield Case(
            f"{label}, compact",
            partial(_at, subject, call, None),
            partial(_at, subject, call, None, masked=True),
        )


def more_outputs(subject: Subject) -> Iterator[Case]:
    """A model that is asked for its hidden states or for tuples gives those of the dense model."""
    trained = values_are_trained(subject.model)
    call = subject.batch
    for option, value in (
        ("output_hidden_states", True),
        ("return_dict", False),
        ("use_cache", False),
        ("use_cache", True),
    ):
        asked = Example(call.args, {**call.kwargs, option: value})
        label = f"{option}={value}"
        if not trained:
            yield Case(
                f"{label}, nothing skipped",
                partial(_dense_function, subject, asked),
                partial(subject.run, asked, subject.dense),
            )
        yield Case(
            f"{label}, compact",
            partial(_at, subject, asked, None),
            partial(_at, subject, asked, None, masked=True),
        )


def double_precision(subject: Subject) -> Iterator[Case]:
    """In float64, where rounding hides nothing, compact is masked and nothing skipped is dense.

    Weights that a rewrite has worked out stay as exact as the type in which it did.
    """
    yield from _in_type(subject, torch.float64, 1e-9, 1e-13)


def half_precision(subject: Subject) -> Iterator[Case]:
    """In bfloat16 and float16 it still is, within what the dense model loses there itself."""
    for dtype, blur in ((torch.bfloat16, 4e-3), (torch.float16, 5e-4)):
        yield from _in_type(subject, dtype, None, blur)


def _in_type(
    subject: Subject, dtype: torch.dtype, tolerance: float | None, blur: float
) -> Iterator[Case]:
    name = str(dtype).removeprefix("torch.")
    call = subject.batch
    other = floats(call, dtype)

    def found(masked: bool, nothing: bool) -> list[Tensor]:
        model = subject.copy().to(dtype)
        if nothing:
            set_prune_ratio(model, 0.0)
        if masked:
            set_execution(model, "masked")
        return answer(model, other)

    def dense() -> list[Tensor]:
        return answer(copy.deepcopy(subject.dense).to(dtype), other)

    if tolerance is None:
        try:
            tolerance = _lost(subject.run(call, subject.dense), dense())
        except Exception as error:  # the dense model's own code does not run in this type
            tolerance = 0.0
            yield Case(name, partial(_raise, error), partial(_raise, error))
            return
    if not values_are_trained(subject.model):
        limit = max(tolerance, REWRITTEN)
        yield Case(f"{name}, nothing skipped", partial(found, False, True), dense, limit, blur)
    compact, masked = partial(found, False, False), partial(found, True, False)
    yield Case(f"{name}, compact", compact, masked, tolerance, blur)


def _lost(whole: list[Tensor], half: list[Tensor]) -> float:
    """Return the tolerance that the dense model's own loss in half precision leaves."""
    lost = max(differences([h.to(w.dtype) for h, w in zip(half, whole, strict=True)], whole))
    if not lost < 0.5:
        raise NotTriedError(f"the dense model itself is {lost:.1e} off in this type")
    return 4 * lost


def autocast(subject: Subject) -> Iterator[Case]:
    """Under autocast nothing skipped is dense, and nothing of it is left for later calls."""
    call = subject.batch

    def under(model: nn.Module) -> list[Tensor]:
        with torch.autocast(next(model.parameters()).device.type, torch.bfloat16):
            return answer(model, call)

    def found() -> list[Tensor]:
        model = subject.copy()
        set_prune_ratio(model, 0.0)
        return under(model)

    def after() -> list[Tensor]:
        model = subject.copy()
        under(model)
        return answer(model, call)

    tolerance = _lost(subject.run(call, subject.dense), under(subject.dense))
    if not values_are_trained(subject.model):
        yield Case("under it", found, partial(under, subject.dense), tolerance, 4e-3)
    yield Case("after it", after, partial(subject.run, call), exact=True)


def _calls(subject: Subject) -> Iterator[tuple[str, Example]]:
    for number, call in enumerate(subject.calls, 1):
        yield f"call {number}", call
    yield "a batch", subject.batch


def _dense_function(subject: Subject, call: Example, masked: bool = False) -> list[Tensor]:
    return _at(subject, call, 0.0, masked=masked)


def _at(
    subject: Subject, call: Example, ratio: float | None, *, masked: bool = False
) -> list[Tensor]:
    with subject.skipping(ratio):
        if masked:
            with subject.masked():
                return subject.run(call)
        return subject.run(call)


def _require_plain_values(subject: Subject) -> None:
    if has_experts(subject.model):
        raise NotTriedError("the model has experts, each with neurons and consumers of its own")
    if values_are_trained(subject.model):
        raise NotTriedError("the gates were trained: kept neurons carry values that they learned")


def values_are_trained(model: nn.Module) -> bool:
    """Whether neurons carry learned values, so that a gate is no plain choice of neurons.

    Those of experts do: with nothing skipped there is no dense model left in them.
    """
    if has_experts(model):
        return True
    for gate in gates(model).values():
        beta = getattr(gate, "beta", None)
        if gate.config.mode == "value" and isinstance(beta, Tensor):
            value = float(beta.detach())
            if not any(abs(value - known) < 1e-6 for known in UNTRAINED):
                return True
    return False


def _raise(error: Exception) -> list[Tensor]:
    raise error
