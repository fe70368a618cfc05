"""What belongs to one call of a gated model: what its gates chose, its batch and its padding.

Nothing of a call lives in a module. Every module that holds a whole neuron group notes when it is
called and when it returns, in a stack that each thread has for itself; the outermost of them opens
the call. Threads, replicas, nested and re-entrant models, and an encoder that is called alone
therefore never meet. The stack is thread-local and not a ContextVar because ``torch.compile``
traces the former alone; a forward pass never waits in its middle, so that both separate alike.
"""

import inspect
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dynprune.errors import GateError
from dynprune.gate.instances import InstanceLayout, batch_of
from dynprune.gate.padding import Masks, PaddingMask, Parameters, masks_of, real_tokens
from dynprune.gate.reruns import checkpoint_at, frames_until, is_running
from dynprune.gate.selection import GateOutput, Selection, threshold

__all__ = ["Call", "GatedNeurons", "Observation", "Scope", "forcing", "observing", "recording"]

_KEPT = "_dynprune_calls"  # attribute of what gradient checkpointing keeps


@dataclass(eq=False)
class GatedNeurons:
    """The neurons of one gate, as the layers around it know them; the key to a call's selection.

    Attributes:
        name: of the neuron group.
        kind: of the neuron group.
        neurons: their number.
        segments: parts that each keep equally many: the heads, or 1.
        layout: where the batch is in the tensors that the group's layers see.
        scope: of the model that the gate was put into.
        per_token: whether every token chooses for itself.
    """

    name: str
    kind: str
    neurons: int
    segments: int
    layout: InstanceLayout
    scope: "Scope"
    per_token: bool = False


@dataclass(frozen=True)
class Observation:
    """What one gate did in one call.

    Attributes:
        neurons: of the gate.
        tokens: (B, T, C) that it chose by; (B * T, 1, C) where each token chooses for itself.
        real: (B, T) tokens that are no padding; None where all count.
        output: scores and values.
        selection: what it chose.
    """

    neurons: GatedNeurons
    tokens: Tensor
    real: Tensor | None
    output: GateOutput
    selection: Selection

    @property
    def values(self) -> Tensor | None:
        """(B, neurons) gate values G, which the L1 penalty reads; None where none needs them.

        They are the factors of the neurons; where these are all 1, a sigmoid of how far each score
        is above the least kept one.
        """
        if self.output.factor is not None or self.selection.mask is None:
            return self.output.factor
        segments = self.neurons.segments
        scores, kept = self.output.scores, self.selection.index.shape[1] // segments
        return torch.sigmoid(scores - threshold(scores, kept, segments))


@dataclass(eq=False)
class Call:
    """One module that runs within a call of a gated model.

    Attributes:
        scope: of the model.
        path: of the module in it, "" for the model itself.
        instances: inputs in the call, as its outermost module got them.
        masks: what may say which tokens are padding, as this module got it.
        selections: what the gates chose so far; one for all modules of the call.
        outer: the module around this one in the same call, or None.
        known: masks that were read in the call.
        frame: that calls the module; it tells a call that was interrupted. None where unknown.
    """

    scope: "Scope"
    path: str
    instances: int
    masks: Masks
    selections: dict[GatedNeurons, Selection]
    outer: "Call | None" = None
    known: list[tuple[PaddingMask, Tensor | None]] = field(default_factory=list)
    frame: FrameType | None = None

    def selection(self, neurons: GatedNeurons) -> Selection:
        """Return what a gate chose in this call.

        Raises:
            GateError: where the group's first producer has not run in it.
        """
        found = self.selections.get(neurons)
        if found is None:
            raise GateError(
                f"Gate {neurons.name!r} has not selected neurons in this call: a consumer of its "
                "neurons ran before their first producer, or outside the module that holds both. "
                "Call the whole model, or a module that holds both layers."
            )
        return found

    def real(self, tokens: Tensor, source: Tensor | None = None) -> Tensor | None:
        """Return which of these tokens (B, T, ...) are no padding, (B, T), or None for all.

        The mask is the one that the innermost module around the gate received; see
        `dynprune.gate.padding`.

        Args:
            tokens: that a gate chooses by.
            source: what its layer got; the tokens themselves where None.
        """
        source = tokens if source is None else source
        for call in self.chain():
            for mask in call.masks.about(source):
                found = self._read(mask)
                if found is not None and found.shape == tokens.shape[:2]:
                    return found
            if call.masks.end(source):
                return None
        return None

    def chain(self) -> "Iterator[Call]":
        """Return the modules that run in the call, this one first and the outermost last."""
        call: Call | None = self
        while call is not None:
            yield call
            call = call.outer

    def blank(self) -> "Call":
        """Return this call before anything was chosen or read in it."""
        outer = None if self.outer is None else self.outer.blank()
        return replace(self, selections={}, known=[], frame=None, outer=outer)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Run the block in a call like this one, in which nothing has been chosen yet."""
        before = _thread.calls
        _thread.calls = (*before, replace(self, selections={}, known=[], frame=None))
        try:
            yield
        finally:
            _thread.calls = before

    def _read(self, mask: PaddingMask) -> Tensor | None:
        for other, found in self.known:
            if other.tensor is mask.tensor and other.name == mask.name:
                return found
        read = real_tokens(mask)
        self.known.append((mask, read))
        return read


class Scope:
    """A gated model as calls know it: opens them, and tells those of another model apart.

    It holds no tensor, and nothing of a call. Copies of a model have a scope of their own;
    replicas, which run in threads of their own, share it.
    """

    def __init__(self) -> None:
        self.handles: list[RemovableHandle] = []

    def watch(self, module: nn.Module, path: str) -> None:
        """Note every call of this module from now on, in place."""
        names = tuple(inspect.signature(module.forward).parameters)
        own = type(module).__module__.startswith("torch.nn.")
        enter = _Enter(self, path, Parameters(names, padding_alone=own))
        self.handles.append(module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True))
        leave = _Leave(self, path)
        self.handles.append(module.register_forward_hook(leave, always_call=True))

    def close(self) -> None:
        """Stop noting calls, in place."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def current(self, *, trained: bool = False) -> Call:
        """Return the call that runs in this thread.

        Args:
            trained: whether its gradient may be asked for.

        Raises:
            GateError: where none does.
        """
        call = self.around(trained=trained)
        if call is None:
            raise GateError(
                "A gated layer was called outside a call of its model, so that its gate has no "
                "input to choose by. Call the model, or a module that holds the whole neuron group."
            )
        return call

    def around(self, *, trained: bool) -> Call | None:
        """Return the call that runs in this thread, or None.

        Gradient checkpointing runs a part of it again when it has ended: what is kept for that
        keeps the call as well, so that the part knows the batch and the padding around it.
        """
        if torch.compiler.is_compiling() or not trained:
            return self.newest()
        here = sys._getframe(1)
        _drop_interrupted(here)
        call, keepers = self.newest(), []
        for frame in frames_until(here, None if call is None else call.frame):
            found = checkpoint_at(frame)
            if found is None:
                continue
            keeper, again = found
            if not again:
                keepers.append(keeper)
                continue
            kept = getattr(keeper, _KEPT, {}).get(self)
            if kept is not None:
                call = replace(kept, selections={}, known=[], frame=frame)
                _thread.calls = (*_thread.calls, call)
            break
        if call is None:
            return None
        for keeper in keepers:
            if not hasattr(keeper, _KEPT):
                setattr(keeper, _KEPT, {})
            getattr(keeper, _KEPT).setdefault(self, call.blank())
        return call

    def newest(self) -> Call | None:
        """Return the call that this thread has noted last, or None."""
        for call in reversed(_thread.calls):
            if call.scope is self:
                return call
        return None


@dataclass(eq=False)
class _Enter:
    """Forward pre-hook: a module of the model is called."""

    scope: Scope
    path: str
    parameters: Parameters

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Note what this call brings; changes neither arguments nor module."""
        frame = None
        if not torch.compiler.is_compiling():
            frame = sys._getframe(1)
            _drop_interrupted(frame)
        trained = module.training or torch.is_grad_enabled()
        outer = self.scope.around(trained=True) if trained else self.scope.newest()
        if outer is not None and self._runs_already(outer):
            outer = None  # re-entered: a call of its own
        masks = masks_of(args, kwargs, self.parameters)
        if outer is None:
            call = Call(self.scope, self.path, batch_of(args, kwargs), masks, {})
        else:
            shared = outer.selections, outer, outer.known
            call = Call(self.scope, self.path, outer.instances, masks, *shared)
        call.frame = frame
        _thread.calls = (*_thread.calls, call)

    def _runs_already(self, outer: Call) -> bool:
        """Return whether this module, or one inside it, is running in the same call."""
        if self.path == "":
            return True
        call: Call | None = outer
        while call is not None:
            if call.path.startswith(self.path) and call.path[len(self.path) :][:1] in ("", "."):
                return True
            call = call.outer
        return False


@dataclass(eq=False)
class _Leave:
    """Forward hook: a module of the model returns, or fails."""

    scope: Scope
    path: str

    def __call__(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        """Drop the module's entry, and whatever an interrupted call left above it."""
        calls = _thread.calls
        for place in range(len(calls) - 1, -1, -1):
            if calls[place].scope is self.scope and calls[place].path == self.path:
                _thread.calls = calls[:place]
                return


Watcher = Callable[[Observation], None]


class _Thread(threading.local):
    """What a thread runs: its calls, who watches them, and what gates are made to choose."""

    calls: tuple[Call, ...] = ()
    watchers: tuple[Watcher, ...] = ()
    forced: Mapping[GatedNeurons, GateOutput] = {}


_thread = _Thread()


def _drop_interrupted(here: FrameType) -> None:
    """Forget calls that ended without their hooks: torch runs none after a KeyboardInterrupt."""
    calls = _thread.calls
    while calls and calls[-1].frame is not None and not is_running(calls[-1].frame, here):
        calls = calls[:-1]
    _thread.calls = calls


@contextmanager
def observing(watcher: Watcher) -> Iterator[None]:
    """Call ``watcher`` with whatever a gate does in this thread while the block runs."""
    before = _thread.watchers
    _thread.watchers = (*before, watcher)
    try:
        yield
    finally:
        _thread.watchers = before


@contextmanager
def recording() -> Iterator[dict[str, list[Observation]]]:
    """Collect what gates do in this thread while the block runs.

    Yields:
        Group name -> an observation for every time that its gate chose.
    """
    seen: dict[str, list[Observation]] = defaultdict(list)

    def record(observation: Observation) -> None:
        seen[observation.neurons.name].append(observation)

    with observing(record):
        yield seen


@contextmanager
def forcing(outputs: Mapping[GatedNeurons, GateOutput]) -> Iterator[None]:
    """Make gates choose by these scores, whatever the input, in this thread while the block runs.

    Args:
        outputs: gate's neurons -> scores and values (B, neurons).
    """
    before = _thread.forced
    _thread.forced = {**before, **outputs}
    try:
        yield
    finally:
        _thread.forced = before


def forced_output(neurons: GatedNeurons, batch: int) -> GateOutput | None:
    """Return what `forcing` makes this gate compute for ``batch`` instances, or None."""
    if not _thread.forced:
        return None
    found = _thread.forced.get(neurons)
    if found is None:
        return None
    factor = None if found.factor is None else found.factor[:batch]
    return GateOutput(found.scores[:batch], factor)


def is_observed() -> bool:
    """Return whether anybody watches the gates in this thread."""
    return bool(_thread.watchers)


def tell(observation: Observation) -> None:
    """Show an observation to all who watch in this thread."""
    for watcher in _thread.watchers:
        watcher(observation)
