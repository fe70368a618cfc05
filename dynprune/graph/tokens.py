"""Where the sequences of tokens are in a call, and how to change some of their tokens."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dynprune.example import Example

__all__ = [
    "Special",
    "Tokens",
    "changed",
    "cuts",
    "ids_of",
    "longer",
    "sequences",
    "special_ids",
    "unmasked",
]

#: Tokens that a call with a single one is made to have.
SEVERAL = 8


@dataclass(frozen=True)
class Tokens:
    """One axis of one input along which tokens may follow each other.

    Attributes:
        name: of the input, for the user.
        place: of the input among the leaves of the call.
        axis: of the tokens.
        length: how many there are.
        are_ids: whether they are whole numbers.
        is_picture: whether the input has rows and columns: four axes or more.
        covered: shape of the input up to its tokens; inputs of equal ones stand side by side.
    """

    name: str
    place: int
    axis: int
    length: int
    are_ids: bool
    is_picture: bool
    covered: tuple[int, ...]


class Special(NamedTuple):
    """Ids that are no words.

    Attributes:
        padding: ids that pad.
        others: ids that stand for something else, such as the place of a picture.
    """

    padding: frozenset[int]
    others: frozenset[int]


def sequences(example: Example) -> list[Tokens]:
    """Find every axis of a call's inputs that may be one of tokens, the likeliest first.

    Masks, caches and numbers that are not finite are no tokens.
    """
    found = list(_sequences(example))
    # What may be a mask or marks of two kinds of token comes last: it is tried if nothing else is.
    return sorted(found, key=lambda tokens: _looks_like_marks(_leaf(example, tokens.place)))


def _sequences(example: Example) -> Iterator[Tokens]:
    leaves, _ = pytree.tree_flatten_with_path((example.args, dict(example.kwargs)))
    for place, (path, leaf) in enumerate(leaves):
        name = _name(path)
        if not isinstance(leaf, Tensor) or leaf.dtype == torch.bool or leaf.dim() < 2:
            continue
        if any(word in name for word in ("mask", "past", "cache")) or not leaf.numel():
            continue
        if leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
            continue
        for axis in _axes(leaf):
            yield Tokens(
                name,
                place,
                axis,
                leaf.shape[axis],
                are_ids=not leaf.is_floating_point() and leaf.dim() < 4,
                is_picture=leaf.dim() > 3,
                covered=tuple(leaf.shape[: axis + 1]),
            )


def _axes(leaf: Tensor) -> list[int]:
    """Axes of an input that may be one of tokens: of pictures, not that of their channels.

    Where a picture has three, its rows come one after the other if anything in it does.
    """
    if leaf.dim() <= 3:
        return [axis for axis in range(1, leaf.dim()) if leaf.shape[axis] > 1]
    if leaf.dim() == 4 and leaf.shape[1] == 3:
        return [2]
    if leaf.dim() == 4:
        return [axis for axis in (1, 2, 3) if leaf.shape[axis] > (4 if axis == 1 else 1)]
    return [axis for axis in (1, 2) if leaf.shape[axis] > 1]


def _name(path: tuple[Any, ...]) -> str:
    """Name an input as the user does: by keyword, or by its place."""
    keys = [getattr(key, "key", getattr(key, "idx", key)) for key in path[1:]]
    first, *rest = keys or [0]
    named = first if isinstance(first, str) else f"input {first}"
    return ".".join([named, *map(str, rest)])


def ids_of(example: Example, tokens: Tokens) -> Tensor | None:
    """Return the ids of a sequence, or None where it is one of numbers."""
    leaf = _leaf(example, tokens.place)
    return None if leaf.is_floating_point() else leaf


def _leaf(example: Example, place: int) -> Tensor:
    leaf = pytree.tree_leaves((example.args, dict(example.kwargs)))[place]
    assert isinstance(leaf, Tensor)
    return leaf


def _looks_like_marks(leaf: Tensor) -> bool:
    return not bool(((leaf != 0) & (leaf != 1)).any())


def unmasked(example: Example) -> Example:
    """Return a call without padding, which would hide tokens as a causal mask does.

    A mask of every pair of tokens stays: it says what may see what.
    """
    batch = example.batch

    def fill(path: tuple[Any, ...], leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() != 2 or leaf.shape[0] != batch:
            return leaf
        if leaf.shape[1] == batch > 1 and torch.equal(leaf, leaf.tril()):
            return leaf
        name = _name(path)
        if "padding_mask" in name:  # torch's own: zero stands for a token that counts
            return torch.zeros_like(leaf)
        if leaf.dtype == torch.bool:
            return torch.ones_like(leaf) if "attention_mask" in name else leaf
        if not leaf.is_floating_point() and leaf.numel() and int(leaf.max()) == 1:
            return torch.ones_like(leaf)
        return leaf

    return Example(*pytree.tree_map_with_path(fill, (example.args, dict(example.kwargs))))


def special_ids(model: nn.Module) -> Special:
    """Give the ids that pad, and those of every other special token, by a model's configuration."""
    padding: set[int] = set()
    others: set[int] = set()
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    for config in configs.values():
        values = vars(config) if hasattr(config, "__dict__") else {}
        for name, value in values.items():
            if name.endswith(("token_id", "token_index")) and type(value) is int and value >= 0:
                (padding if name.startswith("pad_") else others).add(value)
    return Special(frozenset(padding), frozenset(others - padding))


def cuts(tokens: Tokens, ids: Tensor | None, special: Special) -> list[tuple[Tensor, Tensor]]:
    """Return the places of the first and of the last tokens: half of them each, then a few.

    Special tokens stand for something else, and do not count.

    Args:
        tokens: the sequence.
        ids: the ids at its places, tokens along axis 1; None for numbers.
        special: ids that pad, and other special ones.
    """
    places = torch.arange(tokens.length)
    if ids is not None:
        rows = ids.movedim(tokens.axis, 0).reshape(tokens.length, -1)
        for held in (special.padding | special.others, special.padding, frozenset[int]()):
            free = (rows >= 0) & ~torch.isin(rows, torch.tensor(sorted(held), dtype=rows.dtype))
            if int(free.any(1).sum()) > 1:
                places = places[free.any(1).cpu()]
                break
    count = len(places)
    half, few = count // 2, max(1, count // 16)
    found = [(places[: count - half], places[count - half :])]
    if few < half and not tokens.is_picture:
        found.append((places[:few], places[count - few :]))
    return found


def changed(
    example: Example,
    tokens: Tokens,
    places: Tensor,
    special: Special,
    only: int | None = None,
) -> Example | None:
    """Return a call with some tokens of one sequence changed; None where none of them can be.

    Ids become other ids of the call, which the model must know; padding stays, and no id becomes a
    special one, since models count and look for these.

    Args:
        example: the call.
        tokens: the sequence.
        places: of the tokens in it.
        special: ids that pad, and other special ones.
        only: the one id that is to change.
    """
    leaves, spec = pytree.tree_flatten((example.args, dict(example.kwargs)))
    leaf = leaves[tokens.place]
    places = places.to(leaf.device)
    window = leaf.index_select(tokens.axis, places)
    if leaf.is_floating_point():
        noise = torch.randn(window.shape, generator=torch.Generator().manual_seed(0)).to(window)
        other = window + 2 * noise * leaf.std(correction=0).clamp_min(0.1)
    else:
        other = _other_ids(window, leaf, special)
        if only is not None:
            other = torch.where(window == only, other, window)
        if torch.equal(other, window):
            return None
    leaves[tokens.place] = leaf.index_copy(tokens.axis, places, other)
    return Example(*pytree.tree_unflatten(leaves, spec))


def _other_ids(window: Tensor, leaf: Tensor, special: Special) -> Tensor:
    """Return every id another one that the call has, or one beside it where it has no other."""
    seen = [int(i) for i in leaf.unique().tolist() if i >= 0]
    every = special.padding | special.others
    pools = ([i for i in seen if i not in held] for held in (every, special.padding, ()))
    pool = next((found for found in pools if found), [])
    if len(pool) == 1:  # the lower neighbour is in the vocabulary for sure
        near = (i for step in (1, 2, 3) for i in (pool[0] - step, pool[0] + step))
        pool = [*pool, *[i for i in near if i >= 0 and i not in every][:1]]
    following = dict(zip(pool, [*pool[1:], *pool[:1]], strict=True))
    result = window.clone()
    for i in pool:
        result[window == i] = following[i]
    return result


def longer(example: Example) -> Example | None:
    """Return a call with several tokens where each sequence of one has one; None where none has."""
    leaves, spec = pytree.tree_flatten((example.args, dict(example.kwargs)))
    generator = torch.Generator().manual_seed(0)
    found = False
    for place, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor) or leaf.dim() < 2 or leaf.shape[1] != 1:
            continue
        if leaf.dim() != 2 and not (leaf.dim() == 3 and leaf.is_floating_point()):
            continue
        wide = leaf.repeat_interleave(SEVERAL, 1)
        if leaf.dtype != torch.bool and not leaf.is_floating_point():
            found = True
            top = int(leaf.max())
            low = max(0, top - SEVERAL)
            if top > 1:
                wide = torch.randint(low, top + 1, wide.shape, generator=generator).to(leaf)
        elif leaf.is_floating_point():
            wide = wide + torch.randn(wide.shape, generator=generator).to(leaf)
        leaves[place] = wide
    return Example(*pytree.tree_unflatten(leaves, spec)) if found else None
