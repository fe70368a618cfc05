"""Calls and labels that a function of the user's own yields, and batches of them.

The function is one that the user types, ``module:function``. It may take the name of the split;
where it takes nothing, every tenth call is held out.
"""

import hashlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dynprune.data.folders import held_out
from dynprune.data.sampling import mix, sample_index
from dynprune.errors import InputError
from dynprune.example import Example
from dynprune.host.imports import import_function, working_directory_on_path

__all__ = ["CallBatches", "CallData", "is_function", "open_calls"]

_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
MOST_BYTES = 8 << 30
"""Tensors of all calls together: they are kept in memory."""

_HOW = (
    "yield an Example, a tensor, a tuple of arguments or a dict of keyword arguments, batch first, "
    "or one of these (not a bare tensor) in a pair with the labels"
)


@dataclass(frozen=True)
class CallData:
    """Calls, and the labels of each where there are any.

    Attributes:
        name: the function's.
        calls: as they were yielded.
        labels: of every call, batch first; empty where there are none.
    """

    name: str
    calls: tuple[Example, ...]
    labels: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.calls)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of every value of every call."""
        found = hashlib.sha256()
        for call in self.calls:
            for leaf in pytree.tree_leaves((call.args, dict(call.kwargs))):
                found.update(_bytes(leaf) if isinstance(leaf, Tensor) else repr(leaf).encode())
        for label in self.labels:
            found.update(_bytes(label))
        return found.hexdigest()

    def fingerprint(self) -> dict[str, Any]:
        """Return plain values that tell these calls from others."""
        return {"function": self.name, "calls": len(self), "digest": self.digest}


def is_function(name: str) -> bool:
    """Whether a name is written as ``module:function``."""
    return _NAME.fullmatch(name) is not None


def open_calls(name: str, split: str | None) -> CallData:
    """Import a function, call it, and keep what it yields.

    Args:
        name: ``module:function`` as the user typed it.
        split: handed to the function, where it takes an argument; None for all calls, and ``val``
            where it takes one.

    Raises:
        InputError: if it cannot be imported, raises, yields nothing, or yields what is no call, or
            labels for some calls only.
    """
    function = import_function(name)
    takes = _takes_split(function, name)
    found: list[tuple[Example, Tensor | None]] = []
    total = 0
    for number, item in enumerate(_yielded(function, name, (split or "val") if takes else None), 1):
        call, labels = _read(item, f"{name}, call {number}")
        total += sum(t.numel() * t.element_size() for t in call.tensors)
        if total > MOST_BYTES:
            raise InputError(
                f"{name} yields more than {MOST_BYTES >> 30} GiB of tensors in {number} calls, and "
                "they are kept in memory; yield fewer"
            )
        found.append((call, labels))
    if not found:
        raise InputError(f"{name} yields no call for the split {split!r}; {_HOW}")
    with_labels = sum(labels is not None for _, labels in found)
    if with_labels not in (0, len(found)):
        raise InputError(
            f"{name} yields labels for {with_labels} of {len(found)} calls; yield them for all, or "
            "for none"
        )
    if not takes and split is not None:
        found = [found[i] for i in held_out(len(found), split, name)]
    return CallData(
        name,
        tuple(call for call, _ in found),
        tuple(labels for _, labels in found if labels is not None),
    )


class CallBatches:
    """Batches of calls' instances, joined where they are alike: a pure function of (seed, step).

    Instances of the same shapes, types and other arguments are alike. Every one is seen once an
    epoch, but for those that fill up the last batch of a kind.

    Args:
        data: the calls.
        batch_size: instances of a step.
        seed: of the order.
    """

    def __init__(self, data: CallData, batch_size: int, seed: int) -> None:
        self.data, self.batch_size, self.seed = data, batch_size, seed
        kinds: dict[Any, list[tuple[int, int]]] = {}
        for number, call in enumerate(data.calls):
            rows = [(number, row) for row in range(call.batch)]
            kinds.setdefault(_kind(call), []).extend(rows)
        self.kinds = list(kinds.values())
        self.batches = [
            (kind, first)
            for kind, rows in enumerate(self.kinds)
            for first in range(0, len(rows), batch_size)
        ]

    def __call__(self, step: int) -> tuple[Example, Tensor | None]:
        """Return the batch of a step."""
        epoch = step // len(self.batches)
        kind, first = self.batches[sample_index(len(self.batches), step, self.seed)]
        rows, order = self.kinds[kind], mix(self.seed, "instances", epoch)
        chosen = [
            rows[sample_index(len(rows), (first + i) % len(rows), order)]
            for i in range(self.batch_size)
        ]
        calls = [row_of(self.data.calls[number], row) for number, row in chosen]
        labels = None
        if self.data.labels:
            labels = torch.stack([self.data.labels[number][row] for number, row in chosen])
        return _joined(calls), labels


def row_of(call: Example, row: int) -> Example:
    """Return one instance of a call, as a call of its own."""
    batch = call.batch

    def cut(leaf: Any) -> Any:
        return leaf[row : row + 1] if _is_batched(leaf, batch) else leaf

    return Example(*pytree.tree_map(cut, (call.args, dict(call.kwargs))))


def _joined(calls: Sequence[Example]) -> Example:
    """Join calls of one instance each."""
    leaves, spec = zip(*(pytree.tree_flatten((c.args, dict(c.kwargs))) for c in calls), strict=True)
    joined = [
        torch.cat(parts) if _is_batched(parts[0], 1) else parts[0]
        for parts in zip(*leaves, strict=True)
    ]
    return Example(*pytree.tree_unflatten(joined, spec[0]))


def _is_batched(leaf: Any, batch: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == batch


def _kind(call: Example) -> Any:
    """Return what must be equal of two calls for their instances to be joined."""
    leaves, spec = pytree.tree_flatten((call.args, dict(call.kwargs)))
    batch = call.batch
    return str(spec), tuple(
        (str(leaf.dtype), tuple(leaf.shape[1:]))
        if _is_batched(leaf, batch)
        else _bytes(leaf)
        if isinstance(leaf, Tensor)
        else repr(leaf)
        for leaf in leaves
    )


def _takes_split(function: Callable[..., Any], name: str) -> bool:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a builtin without a signature
        return False
    needed = [p for p in parameters if p.default is p.empty and p.kind < p.VAR_POSITIONAL]
    if len(needed) > 1:
        raise InputError(
            f"{name} takes {', '.join(p.name for p in needed)}; it may take the name of the split, "
            "or nothing"
        )
    return bool(needed) or any(p.name == "split" for p in parameters)


def _yielded(function: Callable[..., Any], name: str, split: str | None) -> Iterable[Any]:
    """Go through what a function of the user's own returns: whatever it raises is the answer."""
    try:
        with working_directory_on_path():
            result = function() if split is None else function(split)
            if isinstance(result, (str, Tensor, Mapping)) or not isinstance(result, Iterable):
                raise InputError(
                    f"{name} returned {type(result).__name__}, not calls one by one; {_HOW}"
                )
            yield from result
    except InputError:
        raise
    except Exception as error:  # the user's own function, in its own words
        raise InputError(f"{name} raised {type(error).__name__}: {error}") from error


def _read(item: Any, where: str) -> tuple[Example, Tensor | None]:
    """Make a call, and its labels, of what was yielded."""
    labels = None
    pair = isinstance(item, tuple) and len(item) == 2
    if pair and isinstance(item[0], (Example, Mapping, tuple, list)):
        item, labels = item
        labels = labels if isinstance(labels, Tensor) or labels is None else torch.as_tensor(labels)
    elif pair and _looks_labelled(item):
        raise InputError(
            f"{where}: a pair of tensors, the second of whole numbers, may be an input with its "
            "labels or two arguments; yield ((x,), labels), or Example((x, y))"
        )
    if isinstance(item, Example):
        call = item
    elif isinstance(item, Mapping) and all(isinstance(key, str) for key in item):
        call = Example((), dict(item))
    elif isinstance(item, (tuple, list)):
        call = Example(tuple(item))
    elif isinstance(item, Tensor):
        call = Example((item,))
    else:
        raise InputError(f"{where}: {type(item).__name__} is no call; {_HOW}")
    if not any(tensor.dim() for tensor in call.tensors):
        raise InputError(f"{where} holds no tensor with a batch; {_HOW}")
    if call.batch == 0:
        raise InputError(f"{where} holds a batch of 0 instances; leave it out")
    if labels is not None and (labels.dim() == 0 or labels.shape[0] != call.batch):
        raise InputError(
            f"{where}: labels of shape {tuple(labels.shape)} for {call.batch} instances; the first "
            "axis is the batch"
        )
    return call, labels


def _looks_labelled(item: tuple[Any, ...]) -> bool:
    first, second = item
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return False
    whole = not second.is_floating_point() and not second.is_complex()
    return first.is_floating_point() and whole


def _bytes(tensor: Tensor) -> bytes:
    plain = tensor.detach().cpu().contiguous()
    head = f"{plain.dtype}{tuple(plain.shape)}".encode()
    return head + plain.flatten().view(torch.uint8).numpy().tobytes()
