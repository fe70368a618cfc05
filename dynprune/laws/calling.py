"""Laws of calls: each is answered as if it were the only one, whoever calls, whenever, however."""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from dynprune.example import Example
from dynprune.host.outputs import tensors_of
from dynprune.laws.calls import by_position, cloned, rows_of, strided
from dynprune.laws.subject import Case, NotTriedError, Subject, answer

__all__ = [
    "after_an_exception",
    "grad_modes",
    "inputs_untouched",
    "layouts_of_inputs",
    "many_threads",
    "parts_alone",
    "placed_arguments",
    "re_entered",
    "repeated_calls",
]

WORKERS = 4  # threads that call at once
ROUNDS = 4  # times that they call each row
PLACES = (0.25, 0.5, 0.75)  # of the modules that run, where a call is interrupted
PARTS = 12  # modules that are called alone, at most


class _InterruptedError(Exception):
    """What a law raises in the middle of a call."""


def repeated_calls(subject: Subject) -> Iterator[Case]:
    """The same call gets the same answer again, also after other calls."""
    calls = [*subject.calls, subject.batch]
    for number, call in enumerate(calls, 1):
        wanted = cache(partial(subject.run, call))
        yield Case(f"call {number} again", partial(subject.run, call), wanted, exact=True)

        def after(call: Example = call) -> list[Tensor]:
            for other in calls:
                subject.run(other)
            return subject.run(call)

        yield Case(f"call {number} after the others", after, wanted, exact=True)


def many_threads(subject: Subject) -> Iterator[Case]:
    """Calls from several threads at once get the answers that each gets alone."""
    rows = rows_of(subject.batch) * ROUNDS

    def alone() -> list[Tensor]:
        return [tensor for call in rows for tensor in _plain(subject.model, call)]

    def together() -> list[Tensor]:
        interval = sys.getswitchinterval()
        try:
            sys.setswitchinterval(1e-6)  # threads take turns as often as they can
            with ThreadPoolExecutor(WORKERS) as pool:
                answers = list(pool.map(partial(_plain, subject.model), rows))
        finally:
            sys.setswitchinterval(interval)
        return [tensor for found in answers for tensor in found]

    yield Case(f"{WORKERS} threads", together, alone, blur=0.0)


def re_entered(subject: Subject) -> Iterator[Case]:
    """A call that is made inside a call, by a hook, changes neither answer."""
    call, other = rows_of(subject.batch)[0], subject.batch

    for place in PLACES:

        @cache
        def answers(place: float = place) -> list[Tensor]:
            model = subject.copy()
            inner: list[Tensor] = []

            def again() -> None:
                inner.extend(_plain(model, other))

            with _at_place(model, call, place, again):
                outer = answer(model, call)
            return [*outer, *inner]

        def wanted() -> list[Tensor]:
            return [*subject.run(call), *subject.run(other)]

        yield Case(f"at {place:.0%} of a call", answers, wanted, blur=0.0)


def after_an_exception(subject: Subject) -> Iterator[Case]:
    """A call that fails on its way leaves nothing behind for the next one."""
    call, other = rows_of(subject.batch)[0], subject.batch
    for place in PLACES:

        def found(place: float = place) -> list[Tensor]:
            model = subject.copy()

            def fail() -> None:
                raise _InterruptedError

            with _at_place(model, other, place, fail), suppress(_InterruptedError):
                answer(model, other)
            return answer(model, call)

        yield Case(f"at {place:.0%} of a call", found, partial(subject.run, call), blur=0.0)


def grad_modes(subject: Subject) -> Iterator[Case]:
    """With gradients, without, and in inference mode a call gets the same answer."""
    call = subject.batch

    def under(*modes: Callable[[], AbstractContextManager[Any]]) -> list[Tensor]:
        model = subject.copy()
        made: list[Tensor] = []
        for mode in modes:
            with mode():
                made = [tensor.detach().clone() for tensor in _ask(model, call)]
        return made

    inference: Any = torch.inference_mode
    for label, modes in (
        ("with gradients", (torch.enable_grad,)),
        ("in inference mode", (inference,)),
        ("with gradients after inference mode", (inference, torch.enable_grad)),
        ("in inference mode after gradients", (torch.enable_grad, inference)),
    ):
        yield Case(label, partial(under, *modes), partial(subject.run, call))


def placed_arguments(subject: Subject) -> Iterator[Case]:
    """Arguments by position give the answer of the same arguments by name."""
    for number, call in enumerate((*subject.calls, subject.batch), 1):
        placed = by_position(subject.dense, call)
        if placed is None:
            raise NotTriedError("the model takes no argument both by name and by position")
        yield Case(f"call {number}", partial(subject.run, placed), partial(subject.run, call))


def layouts_of_inputs(subject: Subject) -> Iterator[Case]:
    """Inputs of another memory layout (channels last, strided) get the same answer."""
    for number, call in enumerate((*subject.calls, subject.batch), 1):
        other = strided(call)
        yield Case(f"call {number}", partial(_uncloned, subject, other), partial(subject.run, call))


def inputs_untouched(subject: Subject) -> Iterator[Case]:
    """A call leaves its inputs as they were, where the dense model does."""
    for number, call in enumerate((*subject.calls, subject.batch), 1):

        def left(call: Example = call) -> list[Tensor]:
            used = cloned(call)
            _uncloned(subject, used)
            return used.tensors

        yield Case(f"call {number}", left, partial(_tensors, call), exact=True)


def parts_alone(subject: Subject) -> Iterator[Case]:
    """A part of the model (its encoder, a block) that is called alone answers as within it."""
    batch = subject.batch
    names = _parts(subject, batch)
    if not names:
        raise NotTriedError("no part of the model runs once with tensors alone")
    for name in names:
        part = subject.model.get_submodule(name)
        seen = _Seen()
        handles = [
            part.register_forward_pre_hook(seen.before, with_kwargs=True),
            part.register_forward_hook(seen.after),
        ]
        try:
            subject.run(batch)
        finally:
            for handle in handles:
                handle.remove()

        def alone(part: nn.Module = part, seen: _Seen = seen) -> list[Tensor]:
            if seen.given.batch != batch.batch:
                raise NotTriedError("its rows are parts of inputs: windows, frames, channels")
            subject.run(rows_of(batch)[0])  # what another call brought is not this one's
            return answer(part, seen.call())

        yield Case(name, alone, seen.outputs, blur=0.0)


class _Seen:
    """What a module was given and what it returned."""

    def __init__(self) -> None:
        self.calls = 0
        self.given = Example()
        self.output: list[Tensor] = []

    def before(self, _module: nn.Module, args: Any, kwargs: Any) -> None:
        self.calls += 1
        self.given = cloned(Example(args, dict(kwargs)))

    def after(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self.output = [tensor.clone() for tensor in tensors_of(output)]

    def call(self) -> Example:
        return cloned(self.given)

    def outputs(self) -> list[Tensor]:
        return self.output


def _parts(subject: Subject, call: Example) -> list[str]:
    """Name the larger parts that run once in a call, those nearest to the root first."""
    model = subject.model
    counts: dict[str, int] = {}
    handles = []
    there = dict(model.named_modules())
    parts = subject.dense.named_modules()
    names = [name for name, part in parts if name in there and _is_large(name, part)]
    for name in names:

        def count(*_: Any, name: str = name) -> None:
            counts[name] = counts.get(name, 0) + 1

        handles.append(model.get_submodule(name).register_forward_pre_hook(count))
    try:
        subject.run(call)
    finally:
        for handle in handles:
            handle.remove()
    once = [name for name in names if counts.get(name) == 1]
    return sorted(once, key=lambda name: name.count("."))[:PARTS]


def _is_large(name: str, module: nn.Module) -> bool:
    """Whether a module holds others and lies near the root, and so may be called alone."""
    within = [child for child in module.modules() if any(True for _ in child.parameters(False))]
    return bool(name) and len(within) > 3 and name.count(".") < 4


class _at_place:  # noqa: N801 - reads as a function where it is used
    """Run something once, when a call has come to this share of the modules it runs.

    Args:
        model: a copy that is the law's own.
        call: the call in which it happens.
        place: 0 to 1.
        action: what is run.
    """

    def __init__(
        self, model: nn.Module, call: Example, place: float, action: Callable[[], None]
    ) -> None:
        self.model, self.action, self.done = model, action, False
        order: list[nn.Module] = []
        handles = [
            module.register_forward_pre_hook(lambda module, _: order.append(module))
            for module in model.modules()
            if module is not model and not list(module.children())
        ]
        try:
            answer(model, call)
        finally:
            for handle in handles:
                handle.remove()
        if not order:
            raise NotTriedError("the model runs no modules of its own")
        self.at = order[int(place * (len(order) - 1))]

    def __enter__(self) -> None:
        self.handle = self.at.register_forward_pre_hook(self._once)

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def _once(self, *_: Any) -> None:
        if not self.done:
            self.done = True
            self.action()


def _plain(model: nn.Module, call: Example) -> list[Tensor]:
    """Return the tensors of a call without touching torch's random state, as a server calls."""
    with torch.no_grad():
        return _ask(model, call)


def _ask(model: nn.Module, call: Example) -> list[Tensor]:
    return tensors_of(cloned(call).run(model))


def _tensors(call: Example) -> list[Tensor]:
    return call.tensors


def _uncloned(subject: Subject, call: Example) -> list[Tensor]:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return tensors_of(call.run(subject.model))
