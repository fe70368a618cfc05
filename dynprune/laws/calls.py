"""Other calls made of a given one: its rows, padded rows, other sizes, later tokens changed."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dynprune.example import Example

__all__ = [
    "Later",
    "Padding",
    "by_position",
    "changed_later",
    "cloned",
    "floats",
    "joined",
    "paddings",
    "repeated",
    "resized",
    "rows_of",
    "strided",
    "taken",
]

SHORTEST = 4  # tokens of the shortest sequence that is cut or changed in half
MASKS = ("attention_mask", "src_key_padding_mask", "padding_mask")
"""Arguments by which models learn of padding; the first that a model takes is given to it."""


def _mapped(call: Example, change: Callable[[str, Tensor], Tensor]) -> Example:
    """Change every tensor of a call, known by its argument's name (or position)."""

    def at(path: tuple[Any, ...], leaf: Any) -> Any:
        name = str(getattr(path[-1], "key", path[-1])) if path else ""
        return change(name, leaf) if isinstance(leaf, Tensor) else leaf

    args, kwargs = pytree.tree_map_with_path(at, (call.args, dict(call.kwargs)))
    return Example(args, kwargs)


def _in_rows(leaf: Tensor, batch: int) -> bool:
    return leaf.dim() > 0 and leaf.shape[0] == batch


def cloned(call: Example) -> Example:
    """Return the same call on tensors of its own, which a model may write to."""
    return _mapped(call, lambda _, leaf: leaf.clone())


def taken(call: Example, rows: Sequence[int]) -> Example:
    """Return a call with these rows of the batch, in this order; none make an empty batch."""
    batch, index = call.batch, torch.tensor(list(rows), dtype=torch.long)

    def take(_: str, leaf: Tensor) -> Tensor:
        return leaf[index.to(leaf.device)] if _in_rows(leaf, batch) else leaf

    return _mapped(call, take)


def rows_of(call: Example) -> list[Example]:
    """Return every row of a call as a call of its own."""
    return [taken(call, [row]) for row in range(call.batch)]


def repeated(call: Example, instances: int) -> Example:
    """Return a batch of so many rows: those of the call over and over."""
    return taken(call, [row % call.batch for row in range(instances)])


def joined(calls: Sequence[Example]) -> Example | None:
    """Return one batch of several calls, or None where their shapes or settings differ."""
    first = calls[0]
    leaves = [pytree.tree_flatten((call.args, dict(call.kwargs))) for call in calls]
    if any(spec != leaves[0][1] for _, spec in leaves):
        return None
    made = []
    for column in zip(*(flat for flat, _ in leaves), strict=True):
        one = column[0]
        if not isinstance(one, Tensor):
            if any(isinstance(x, Tensor) or x != one for x in column):
                return None
            made.append(one)
        elif any(not isinstance(x, Tensor) or x.shape[1:] != one.shape[1:] for x in column):
            return None
        elif _in_rows(one, first.batch):
            made.append(torch.cat(list(column)))
        elif all(x.shape == one.shape and torch.equal(x, one) for x in column):
            made.append(one)
        else:
            return None
    return Example(*pytree.tree_unflatten(made, leaves[0][1]))


def floats(call: Example, dtype: torch.dtype) -> Example:
    """Return the call with its floating-point tensors in another type."""
    return _mapped(call, lambda _, leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf)


def strided(call: Example) -> Example:
    """Return the call with the same values in another memory layout."""

    def stride(_: str, leaf: Tensor) -> Tensor:
        if leaf.dim() == 4:
            return leaf.contiguous(memory_format=torch.channels_last)
        if leaf.dim() < 2:
            return leaf
        return torch.stack([leaf, leaf], dim=-1)[..., 0]  # every second value of a larger tensor

    return _mapped(call, stride)


def by_position(model: nn.Module, call: Example) -> Example | None:
    """Return the call with its keyword arguments given by position; None where it has none."""
    if not call.kwargs or call.args:
        return None
    parameters = list(inspect.signature(model.forward).parameters.values())
    wanted = dict(call.kwargs)
    args: list[Any] = []
    for parameter in parameters:
        if not wanted:
            break
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
            return None
        if parameter.name in wanted:
            args.append(wanted.pop(parameter.name))
        elif parameter.default is not parameter.empty:
            args.append(parameter.default)
        else:
            return None
    return None if wanted else Example(tuple(args))


def resized(call: Example) -> Iterator[tuple[str, Example]]:
    """Yield the call at other sizes of pictures and other lengths of sequences, each named."""
    batch = call.batch
    leaves = [leaf for leaf in call.tensors if _in_rows(leaf, batch)]
    pictures = [leaf for leaf in leaves if leaf.dim() in (4, 5) and leaf.is_floating_point()]
    if pictures:
        height, width = pictures[0].shape[-2:]
        for size in (
            (height + 32, width),
            (max(8, height // 2), width),
            (height - 1, max(8, width - 3)),
        ):
            yield f"{size[0]}x{size[1]} pixels", _mapped(call, _picture_to(batch, size))
    lengths = {n for leaf in leaves if leaf.dim() in (2, 3) for n in leaf.shape[1:]}
    for length in sorted(n for n in lengths if n >= SHORTEST):
        for wanted in (length // 2, length + 3, length - 1):
            yield f"{wanted} instead of {length}", _mapped(call, _length_to(batch, length, wanted))


def _picture_to(batch: int, size: tuple[int, int]) -> Callable[[str, Tensor], Tensor]:
    def change(_: str, leaf: Tensor) -> Tensor:
        if leaf.dim() not in (4, 5) or not _in_rows(leaf, batch):
            return leaf
        rows = torch.arange(size[0], device=leaf.device) % leaf.shape[-2]
        columns = torch.arange(size[1], device=leaf.device) % leaf.shape[-1]
        return leaf[..., rows, :][..., columns]

    return change


def _length_to(batch: int, length: int, wanted: int) -> Callable[[str, Tensor], Tensor]:
    def change(_: str, leaf: Tensor) -> Tensor:
        if leaf.dim() not in (2, 3) or not _in_rows(leaf, batch):
            return leaf
        axis = next((a for a in range(1, leaf.dim()) if leaf.shape[a] == length), None)
        if axis is None:
            return leaf
        return leaf.index_select(axis, torch.arange(wanted, device=leaf.device) % length)

    return change


@dataclass(frozen=True)
class Later:
    """A call with the later tokens of one sequence changed, and one with the earlier ones.

    Attributes:
        name: of the sequence, or its position.
        length: its tokens.
        kept: tokens before the later ones.
        later: the call with new later tokens.
        earlier: the call with new earlier tokens.
    """

    name: str
    length: int
    kept: int
    later: Example
    earlier: Example


def changed_later(call: Example) -> Iterator[Later]:
    """Yield changes of a call's sequences, from the middle on and of the last token alone.

    Sequences are the tensors (B, T) and (B, T, C) with at least 4 tokens that are no masks.
    """
    for name, leaf in named_tensors(call):
        if leaf.dim() not in (2, 3) or not _in_rows(leaf, call.batch) or leaf.shape[1] < SHORTEST:
            continue
        if "mask" in name or (not leaf.is_floating_point() and int(leaf.max()) <= 1):
            continue
        length = leaf.shape[1]
        for kept in (length // 2, length - 1):
            later = _mapped(call, _changed(name, slice(kept, None)))
            earlier = _mapped(call, _changed(name, slice(0, kept)))
            yield Later(name, length, kept, later, earlier)


def _changed(wanted: str, tokens: slice) -> Callable[[str, Tensor], Tensor]:
    def change(name: str, leaf: Tensor) -> Tensor:
        if name != wanted:
            return leaf
        leaf = leaf.clone()
        part = leaf[:, tokens]
        if leaf.is_floating_point():
            noise = torch.randn(part.shape, generator=torch.Generator().manual_seed(3))
            part += noise.to(part) * leaf.std().clamp_min(0.1)
        else:
            values = leaf.unique()
            place = torch.searchsorted(values, part.contiguous())
            part.copy_(values[(place + 1) % len(values)])
        return leaf

    return change


def named_tensors(call: Example) -> list[tuple[str, Tensor]]:
    """Return the tensors of a call, each with its argument's name or position."""
    found: list[tuple[str, Tensor]] = []

    def note(name: str, leaf: Tensor) -> Tensor:
        found.append((name, leaf))
        return leaf

    _mapped(call, note)
    return found


@dataclass(frozen=True)
class Padding:
    """A row alone and the same row padded, in a batch behind a longer one.

    Attributes:
        label: on which side, and by which argument the model is told.
        alone: the call of the row alone, without padding.
        padded: the call of both rows.
        left: whether the padding stands before the row.
    """

    label: str
    alone: Example
    padded: Example
    left: bool


def paddings(model: nn.Module, call: Example) -> Iterator[Padding]:
    """Yield padded forms of a call's second row, for every mask of a length that the model takes.

    Nothing is yielded for a call without sequences, or a model that takes no mask.
    """
    if call.batch < 2:
        return
    taken_names = set(inspect.signature(model.forward).parameters)
    tensors = dict(named_tensors(call))
    masks = [n for n, leaf in tensors.items() if "mask" in n and leaf.dim() == 2]
    masks = [n for n in masks if _in_rows(tensors[n], call.batch)]
    if not masks:
        free = [name for name in MASKS if name in taken_names]
        call = _with_mask(call, free[0]) if free and not call.args else call
        masks = [free[0]] if free and free[0] in call.kwargs else []
    for mask in masks:
        yield from _padded_by(call, mask)


def _with_mask(call: Example, name: str) -> Example:
    """Return the call with a mask that marks no padding, beside its first sequence."""
    first = next((leaf for _, leaf in named_tensors(call) if leaf.dim() in (2, 3)), None)
    if first is None:
        return call
    ones = torch.ones(first.shape[:2], dtype=torch.long, device=first.device)
    return Example(call.args, {**call.kwargs, name: ones == 0 if "padding" in name else ones})


def _padded_by(call: Example, mask: str) -> Iterator[Padding]:
    tensors = dict(named_tensors(call))
    length = tensors[mask].shape[1]
    short = length // 2
    if short < 2:
        return
    decoder = mask.startswith("decoder")
    full = 0 if "padding" in mask else 1

    def along(name: str, leaf: Tensor) -> bool:
        fits = leaf.dim() in (2, 3) and _in_rows(leaf, call.batch) and leaf.shape[1] == length
        return fits and name.startswith("decoder") == decoder

    def unmasked(name: str, leaf: Tensor) -> Tensor:
        return torch.full_like(leaf, full) if name == mask else leaf

    both = taken(_mapped(call, unmasked), [0, 1])

    def cut(name: str, leaf: Tensor) -> Tensor:
        return leaf[1:, :short] if along(name, call_of[name]) else _second(leaf)

    def _second(leaf: Tensor) -> Tensor:
        return leaf[1:] if _in_rows(leaf, 2) else leaf

    call_of = tensors
    alone = _mapped(both, cut)
    for left in (False, True):

        def fill(name: str, leaf: Tensor, left: bool = left) -> Tensor:
            if not along(name, call_of[name]):
                return leaf
            leaf = leaf.clone()
            there = slice(length - short, None) if left else slice(0, short)
            blank = slice(0, length - short) if left else slice(short, None)
            row = leaf[1, :short].clone()
            leaf[1, blank] = 1 - full if name == mask else _blank(leaf)
            leaf[1, there] = row
            return leaf

        side = "left" if left else "right"
        yield Padding(f"padded on the {side} by {mask}", alone, _mapped(both, fill), left)


def _blank(leaf: Tensor) -> float | int:
    """What stands where nothing is: silence, or an id that occurs anyway."""
    return 0.0 if leaf.is_floating_point() else int(leaf.min())
