"""Make calls of several different instances that a model takes, out of the one at hand."""

import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dynprune.example import Example, Ids
from dynprune.host.arguments import copied
from dynprune.host.failures import first_line, reraise_ours
from dynprune.host.trial import trial

__all__ = ["SMALL", "cut", "packing", "several", "small_example", "variants"]

logger = logging.getLogger(__name__)

SMALL = 128  # pixels a side that suffice to see how a model handles its neurons
SHORT = 32  # ids of a sequence, likewise

#: Ways in which whole numbers vary, the most telling first.
_WAYS: tuple[Ids, ...] = ("turned", "columns", "first", "kept")


def cut(example: Example) -> Example:
    """Return the call with pictures of at most 128 pixels a side, and long ids cut to 32.

    Masks are cut with the ids beside them. Where padding stands first, or where several pieces lie
    in one row, sequences stay whole.
    """
    ids = [t for t in example.tensors if t.dim() == 2 and not t.is_floating_point()]
    length = max((t.shape[1] for t in ids), default=0)
    masks = [t for t in ids if t.numel() and (t.dtype == torch.bool or int(t.max()) <= 1)]
    hidden = any(not bool(m[:, :SHORT].any(1).all()) for m in masks)
    shortens = length >= 2 * SHORT and not hidden and packing(example) is None

    def corner(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.dim() == 4 and leaf.is_floating_point() and max(leaf.shape[-2:]) > SMALL:
            return leaf[..., :SMALL, :SMALL]
        return leaf[:, :SHORT] if shortens and leaf.shape[1:] == (length,) else leaf

    return Example(*pytree.tree_map(corner, (example.args, dict(example.kwargs))))


def variants(example: Example, instances: int, *, seed: int = 0) -> Iterator[Example]:
    """Yield calls of different instances, the most different first.

    A model may count and compare some of its whole numbers, or take several inputs in one row with
    their sizes beside them.
    """
    has_ids = any(not t.is_floating_point() and t.dtype != torch.bool for t in example.tensors)
    ways = _WAYS if has_ids else _WAYS[:1]
    yield from (example.batched(instances, seed=seed, ids=way) for way in ways)
    if packing(example) is not None:
        yield _packed(example, instances, seed)


def several(model: nn.Module, example: Example, instances: int = 2) -> Example | str:
    """Make a call of different instances that a model takes, or say why there is none.

    Args:
        model: in eval mode; it runs until it does not fail.
        example: one call of it.
        instances: batch of the new call.
    """
    failure = ""
    for call in variants(example, instances):
        try:
            args, kwargs = copied((call.args, dict(call.kwargs)))
            with trial(model):
                model(*args, **kwargs)
        except Exception as error:  # any model may refuse a call, in its own words
            reraise_ours(error)
            failure = failure or first_line(error)
            continue
        return call
    return f"the model does not take {instances} of its inputs side by side: {failure}"


def small_example(model: nn.Module, example: Example) -> Example | str:
    """Make a call of two different instances, with pictures and long ids cut if that runs.

    Args:
        model: in eval mode.
        example: one call of it.

    Returns:
        The call, or why there is none.
    """
    small = cut(example)
    if any(a is not b for a, b in zip(small.tensors, example.tensors, strict=True)):
        found = several(model, small)
        if not isinstance(found, str):
            return found
        logger.debug("The model does not run on a smaller call: %s", found)
    return several(model, example)


def packing(example: Example) -> tuple[str, int] | None:
    """Find whole numbers that say where in one row of an input several pieces lie.

    Returns:
        Name of that input, and the length of the row; None where there is no such input.
    """
    leaves, _ = pytree.tree_flatten_with_path((example.args, dict(example.kwargs)))
    lengths = {
        leaf.shape[axis]
        for _, leaf in leaves
        if isinstance(leaf, Tensor)
        for axis in range(min(2, leaf.dim()))
    }
    batch = example.batch
    for path, leaf in leaves:
        if not isinstance(leaf, Tensor) or leaf.is_floating_point() or leaf.dtype == torch.bool:
            continue
        total = _row_length(leaf, batch)
        if total in lengths:
            return _name(path), total
    return None


def _row_length(leaf: Tensor, batch: int) -> int:
    """Return the length of the row that these numbers part, or 0 where they are no such numbers."""
    if not leaf.numel() or int(leaf.min()) < 0:
        return 0
    if leaf.dim() == 1 and len(leaf) > 1 and int(leaf[0]) == 0 and bool((leaf.diff() > 0).all()):
        # Ends of pieces; what counts up by one is positions.
        return int(leaf[-1]) if len(leaf) == 2 or not bool((leaf.diff() == 1).all()) else 0
    if leaf.dim() == 1 and len(leaf) > 1 and len(leaf) != batch:
        return int(leaf.sum())
    if leaf.dim() == 2 and leaf.shape[1] in (2, 3) and int(leaf.min()) > 0:
        return int(leaf.prod(1).sum())  # rows and columns, or frames, rows and columns
    return 0


def _name(path: tuple[Any, ...]) -> str:
    keys = [getattr(key, "key", getattr(key, "idx", key)) for key in path[1:]]
    return str(keys[0]) if isinstance(keys[0], str) else f"input {keys[0]}"


def _packed(example: Example, instances: int, seed: int) -> Example:
    """Lay whole inputs one behind the other along the first axis of each tensor."""
    generator = torch.Generator().manual_seed(seed)

    def repeat(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.dim():
            return leaf
        if leaf.dim() == 1 and not leaf.is_floating_point() and len(leaf) > 1 and leaf[0] == 0:
            ends = [leaf + i * leaf[-1] for i in range(instances)]
            return torch.cat([ends[0], *[end[1:] for end in ends[1:]]])
        wide = leaf.repeat(instances, *[1] * (leaf.dim() - 1))
        if not wide.is_floating_point():
            return wide
        noise = torch.randn(wide.shape, generator=generator).to(wide)
        return wide + noise * wide.std(correction=0).clamp_min(0.1)

    return Example(*pytree.tree_map(repeat, (example.args, dict(example.kwargs))))
