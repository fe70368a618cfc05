"""Find out by running which layers belong to a part of a model that must not see the future."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dynprune.example import Example
from dynprune.graph.neurons import NeuronGroup
from dynprune.host.modes import at_inference

__all__ = ["causal_modules"]

#: Fraction of the largest value below which a change is rounding.
_ROUNDING = 1e-6


def causal_modules(
    model: nn.Module, example: Example, groups: Sequence[NeuronGroup]
) -> frozenset[str]:
    """Name the first producers of groups that stand in a causal part of the model.

    One half of each input sequence is changed at a time. Where attention is causal, changing the
    early half reaches every token and changing the late half only the late ones. Where it is not,
    each reaches all. Layers before any token meets another share the verdict of the rest.

    Args:
        model: any module.
        example: one call of it; inputs of two or three axes are looked at as sequences.
        groups: the groups to judge; without attention among them nothing is run.
    """
    names = sorted({group.producers[0].module for group in groups})
    cases = list(_sequences(example))
    if not cases or not any(group.kind in ("qk", "v") for group in groups):
        return frozenset()
    causal: set[str] = set()
    with at_inference(model):
        base = _inputs_of(model, names, _unmasked(example))
        for leaf, axis in cases:
            calls = [_changed(model, example, leaf, axis, late) for late in (False, True)]
            try:
                early, late = (_reach(base, _inputs_of(model, names, call)) for call in calls)
            except (IndexError, RuntimeError, ValueError):
                continue  # No sequence: a changed value is not one that the model takes.
            touched = {name for name in base if early[name] > 0}
            found = {name for name in touched if early[name] == 1 and 0 < late[name] < 1}
            if found:
                alone = {name for name in touched if early[name] < 1 and late[name] < 1}
                causal |= found | alone
    return frozenset(causal)


def _sequences(example: Example) -> Iterator[tuple[int, int]]:
    """Place and axis of everything in an example that may be a sequence."""
    for place, leaf in enumerate(pytree.tree_leaves((example.args, dict(example.kwargs)))):
        if isinstance(leaf, Tensor) and leaf.dim() in (2, 3) and leaf.dtype != torch.bool:
            yield from ((place, axis) for axis in range(1, leaf.dim()) if leaf.shape[axis] > 1)


def _unmasked(example: Example) -> Example:
    """An example without padding, which would hide tokens as a causal mask does."""

    def fill(path: tuple[Any, ...], leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() < 2:
            return leaf
        name = str(path[-1])
        if "padding_mask" in name:  # torch's own: zero stands for a token that counts
            return torch.zeros_like(leaf)
        if leaf.dtype == torch.bool:
            return torch.ones_like(leaf) if "attention_mask" in name else leaf
        if not leaf.is_floating_point() and int(leaf.max()) == 1:
            return torch.ones_like(leaf)
        return leaf

    return Example(*pytree.tree_map_with_path(fill, (example.args, dict(example.kwargs))))


def _changed(model: nn.Module, example: Example, place: int, axis: int, late: bool) -> Example:
    """An example with the early or late half of one sequence changed."""
    plain = _unmasked(example)
    leaves, spec = pytree.tree_flatten((plain.args, dict(plain.kwargs)))
    leaf = leaves[place].clone()
    half = leaf.shape[axis] // 2
    part = leaf.narrow(axis, half if late else 0, leaf.shape[axis] - half if late else half)
    if leaf.is_floating_point():
        noise = torch.randn(part.shape, generator=torch.Generator().manual_seed(0))
        part += noise.to(part) * part.std().clamp_min(0.1)
    else:
        part.copy_(_other_ids(part, leaf, _padding(model)))
    leaves[place] = leaf
    return Example(*pytree.tree_unflatten(leaves, spec))


def _other_ids(part: Tensor, leaf: Tensor, padding: int | None) -> Tensor:
    """Give every id another one; padding stays, and no id becomes it, since models count it."""
    seen = [i for i in leaf.unique().tolist() if i != padding]
    pool = seen if len(seen) > 1 else sorted({*seen, *(i for i in range(3) if i != padding)})
    known = torch.tensor(pool).to(leaf)
    place = torch.searchsorted(known, part.contiguous())
    moved = known[(place + 1) % len(known)]
    return torch.where(part == padding, part, moved) if seen and padding is not None else moved


def _padding(model: nn.Module) -> int | None:
    """Give the id that a transformers model takes for padding, if it has one."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = getattr(config, "pad_token_id", None)
    return found if isinstance(found, int) else None


def _inputs_of(model: nn.Module, names: Sequence[str], example: Example) -> dict[str, Tensor]:
    """The first input of each named module, one row a token."""
    seen: dict[str, Tensor] = {}

    def remember(name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor) and args[0].dim() > 1:
            seen[name] = args[0].detach().flatten(0, -2)

    modules = dict(model.named_modules())
    handles = [
        modules[name].register_forward_pre_hook(partial(remember, name))
        for name in names
        if name in modules
    ]
    try:
        example.run(model)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _reach(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    """Share of each module's rows that a change reached."""
    reach = {}
    for name, rows in before.items():
        other = after.get(name)
        if other is None or other.shape != rows.shape:
            reach[name] = 0.0
            continue
        change = (other - rows).abs().amax(1)
        reach[name] = float((change > _ROUNDING * rows.abs().max()).float().mean())
    return reach
