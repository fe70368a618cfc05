"""Keep what a model's own code may change while it runs on trial, and put it back.

A model that is looked at must not remember it: a forward pass may shrink a window, fill a cache,
count its calls or draw random numbers, and the next run, or the user, would meet another model.
"""

import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.jit import ScriptModule

from dynprune.host.chance import RandomState

__all__ = ["OWN_MARK", "Snapshot", "trial"]

OWN_MARK = "_dynprune"
"""How the attributes begin that dynprune itself keeps on a model."""

_HOOKS = tuple(name for name, value in vars(nn.Module()).items() if "hook" in name and value == {})
_STRUCTURE = frozenset({"_modules", "_is_full_backward_hook", *_HOOKS})

_INSTALLED = "_output_capturing_hooks_installed"
"""How transformers marks a model on which it has registered hooks once and for good. Without them
the first call takes a lock, which `torch.compile` of a whole graph does not follow."""

_ATOMS = (int, float, complex, bool, str, bytes, type(None), range, slice, type(...))
_OPAQUE = (type, ModuleType, FunctionType, MethodType, torch.dtype, torch.device, torch.Size)
_FIXED = (*_ATOMS, *_OPAQUE)
_FOREIGN_ROOTS = frozenset({*sys.stdlib_module_names, "torch", "numpy", "dynprune"})

Undo = Callable[[], None]


class Snapshot:
    """The state of a model's modules: attributes, buffers, containers, whatever stands in them.

    Kept are, for every module, registered or held in an attribute, that is not dynprune's own:
    all its plain attributes, and what lies in them (lists, dicts, sets, arrays, tensors, generators
    of random numbers, objects with attributes), hooks that its own code registers, buffers with
    their values, and which parameters stand where, with their memory, gradients and flags. Values
    of parameters are not copied but where torch itself writes them in a forward pass (an
    embedding's ``max_norm``). Children are not looked at, so that layers may be replaced meanwhile,
    nor are dynprune's own hooks.

    Args:
        model: whose state is kept.
    """

    def __init__(self, model: nn.Module) -> None:
        self._undo: list[Undo] = []
        self._seen: dict[int, Any] = {}  # holds what was looked at, so that no id is used twice
        for module in model.modules():
            self._keep(module)

    def put_back(self) -> None:
        """Give everything that changed since its value back, in place; may be called again."""
        with torch.no_grad():
            for undo in self._undo:
                undo()

    def _keep(self, value: Any) -> None:
        """Keep a value that can change, once, and what lies in it."""
        waiting = [value]
        while waiting:
            item = waiting.pop()
            if isinstance(item, _FIXED) or id(item) in self._seen:
                continue
            self._seen[id(item)] = item
            undo, inside = _kept(item)
            if undo is not None:
                self._undo.append(undo)
            waiting.extend(inside)


@contextmanager
def trial(model: nn.Module) -> Iterator[Snapshot]:
    """Run the body, then put back what it changed of the model's state and of chance.

    Yields:
        The state at the start; `Snapshot.put_back` before each further run makes every run start
        from it.
    """
    chance = RandomState()
    kept = Snapshot(model)
    try:
        yield kept
    finally:
        try:
            kept.put_back()
        except BaseException:  # an interrupt in the middle of it
            kept.put_back()
            raise
        finally:
            chance.put_back()


def _kept(item: Any) -> tuple[Undo | None, list[Any]]:
    """Return what puts an object back, None where nothing can change, and what lies in it."""
    if isinstance(item, nn.Module):
        return _module(item)
    if isinstance(item, nn.Parameter):
        return _parameter(item), []
    if isinstance(item, Tensor):
        return _tensor(item), []
    if isinstance(item, tuple | frozenset):
        return None, list(item)
    if isinstance(item, dict):
        return _dict(item), [*item.keys(), *item.values()]
    if isinstance(item, list):
        return _list(item), list(item)
    if isinstance(item, set):
        return _set(item), []
    if isinstance(item, deque):
        return _deque(item), list(item)
    if isinstance(item, np.ndarray):
        return _array(item), []
    if (state := _generator(item)) is not None:
        return state, []
    return _object(item)


def _module(module: nn.Module) -> tuple[Undo | None, list[Any]]:
    if isinstance(module, ScriptModule):
        return None, []
    hooks = [(table, dict(table)) for table in (vars(module)[name] for name in _HOOKS)]
    if type(module).__module__.startswith("dynprune."):
        return partial(_put_hooks, hooks), []
    values = _plain(vars(module))
    inside = [v for k, v in values.items() if k not in ("_parameters", "_buffers")]
    parameters, buffers = module._parameters, module._buffers
    inside += [*parameters.values(), *buffers.values()]
    tables: list[tuple[Any, dict[str, Any]]] = [(t, dict(t)) for t in (parameters, buffers)]
    weight = _normalised_in_use(module)
    value = None if weight is None else weight.detach().clone()

    def undo() -> None:
        _put_attributes(module, values)
        for table, before in tables:
            if not _same(table, before):
                table.clear()
                table.update(before)
        _put_hooks(hooks)
        if weight is not None and value is not None and not torch.equal(weight, value):
            weight.copy_(value)

    return undo, inside


def _normalised_in_use(module: nn.Module) -> Tensor | None:
    """Return the weight that torch itself writes while the module runs, or None."""
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
        return module.weight
    return None


def _plain(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes of a module that its own code may change."""
    stay = {*_STRUCTURE, _INSTALLED}
    return {k: v for k, v in attributes.items() if k not in stay and not k.startswith(OWN_MARK)}


def _put_attributes(owner: Any, before: dict[str, Any]) -> None:
    attributes = vars(owner)
    for name in [name for name in _plain(attributes) if name not in before]:
        del attributes[name]
    for name, value in before.items():
        if name not in attributes or attributes[name] is not value:
            attributes[name] = value


def _put_hooks(hooks: list[tuple[dict[int, Any], dict[int, Any]]]) -> None:
    """Take off the hooks that a module's own code registered, and register those it took off."""
    if all(table.keys() == before.keys() for table, before in hooks):
        return
    pairs = [pair for table, before in hooks for pair in (*table.items(), *before.items())]
    ours = {key for key, hook in pairs if _stays(hook)}
    for table, before in hooks:
        now = dict(table)
        kept = {k: v for k, v in before.items() if k not in ours or k in now}
        kept |= {k: v for k, v in now.items() if k in ours}
        table.clear()
        table.update(kept)


def _stays(hook: Any) -> bool:
    """Whether a hook is dynprune's own, or one that transformers registers once and for good."""
    function = hook.func if isinstance(hook, partial) else hook
    where = getattr(function, "__module__", None) or type(function).__module__
    return where.startswith(("dynprune.", "transformers.utils.output_capturing"))


def _object(item: Any) -> tuple[Undo | None, list[Any]]:
    """Keep the attributes of an object of somebody's own class."""
    kind = type(item)
    if kind.__module__.partition(".")[0] in _FOREIGN_ROOTS:
        return None, []
    slots = [name for cls in kind.__mro__ for name in _slots(cls)]
    filled = {name: getattr(item, name) for name in slots if hasattr(item, name)}
    before = dict(vars(item)) if hasattr(item, "__dict__") else None
    if before is None and not filled:
        return None, []

    def undo() -> None:
        if before is not None and not _same(vars(item), before):
            vars(item).clear()
            vars(item).update(before)
        for name, value in filled.items():
            if getattr(item, name, None) is not value:
                object.__setattr__(item, name, value)

    return undo, [*(before or {}).values(), *filled.values()]


def _slots(kind: type) -> Iterator[str]:
    names = vars(kind).get("__slots__", ())
    for name in (names,) if isinstance(names, str) else names:
        if name not in ("__dict__", "__weakref__") and not name.startswith("__"):
            yield name


def _same(now: dict[Any, Any], before: dict[Any, Any]) -> bool:
    """Whether a dict holds the very same things in the same order."""
    return len(now) == len(before) and all(
        a is b and v is w for (a, v), (b, w) in zip(now.items(), before.items(), strict=True)
    )


def _dict(item: dict[Any, Any]) -> Undo:
    before = dict(item)
    kind: type[dict[Any, Any]] = OrderedDict if isinstance(item, OrderedDict) else dict

    def undo() -> None:
        if not _same(item, before):
            kind.clear(item)
            for key, value in before.items():
                kind.__setitem__(item, key, value)

    return undo


def _list(item: list[Any]) -> Undo:
    before = tuple(item)

    def undo() -> None:
        if len(item) != len(before) or any(a is not b for a, b in zip(item, before, strict=True)):
            list.__setitem__(item, slice(None), before)

    return undo


def _set(item: set[Any]) -> Undo:
    before = frozenset(item)

    def undo() -> None:
        if item != before:
            set.clear(item)
            set.update(item, before)

    return undo


def _deque(item: deque[Any]) -> Undo:
    before = tuple(item)

    def undo() -> None:
        if len(item) != len(before) or any(a is not b for a, b in zip(item, before, strict=True)):
            item.clear()
            item.extend(before)

    return undo


def _array(item: np.ndarray[Any, Any]) -> Undo:
    before = item.copy()

    def undo() -> None:
        if item.tobytes() != before.tobytes():
            item[...] = before

    return undo


def _parameter(parameter: nn.Parameter) -> Undo:
    """Keep a parameter's memory, gradient and flag; not its values."""
    memory = parameter.detach() if type(parameter.data) is Tensor else None
    needed, gradient = parameter.requires_grad, parameter.grad

    def undo() -> None:
        if memory is not None and not _is_view(parameter, memory):
            parameter.data = memory
        if parameter.requires_grad != needed:
            parameter.requires_grad_(needed)
        if parameter.grad is not gradient:
            parameter.grad = gradient

    return undo


def _tensor(tensor: Tensor) -> Undo | None:
    """Keep a tensor's memory and values."""
    if type(tensor) is not Tensor or tensor.is_meta or tensor.layout != torch.strided:
        return None
    memory, value = tensor.detach(), tensor.detach().clone()

    def undo() -> None:
        if not _is_view(tensor, memory):
            tensor.data = memory
        if not torch.equal(memory, value):
            with torch.inference_mode(tensor.is_inference()):
                memory.copy_(value)

    return undo


def _is_view(tensor: Tensor, memory: Tensor) -> bool:
    return (
        tensor.dtype == memory.dtype
        and tensor.device == memory.device
        and tensor.shape == memory.shape
        and tensor.stride() == memory.stride()
        and tensor.data_ptr() == memory.data_ptr()
    )


def _generator(item: Any) -> Undo | None:
    """Keep the state of a generator of random numbers that a module holds."""
    if isinstance(item, torch.Generator):
        return partial(_set_state, item, item.get_state())
    if isinstance(item, random.Random):
        return partial(item.setstate, item.getstate())
    if isinstance(item, np.random.Generator):
        bits = item.bit_generator
        return partial(setattr, bits, "state", bits.state)
    if isinstance(item, np.random.RandomState):
        return partial(item.set_state, item.get_state())
    return None


def _set_state(generator: torch.Generator, state: Tensor) -> None:
    generator.set_state(state)
