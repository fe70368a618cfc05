"""Run a dense model a few times to see where its batch goes and which modules run once."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils import _pytree as pytree

from dynprune.example import Example
from dynprune.gate.instances import InstanceLayout
from dynprune.graph.neurons import NeuronGroup
from dynprune.host.failures import reraise_ours

__all__ = ["Probe", "probe", "small_example"]

Hook = Callable[[nn.Module, tuple[Any, ...]], None]

logger = logging.getLogger(__name__)

#: Why a layer's input has no batch.
CONSTANT = "its input does not depend on the model's input"

SMALL = 128  # pixels a side that suffice to see how a model handles its neurons


class Probe:
    """What running the model showed.

    Attributes:
        layouts: group name -> where the batch is, or why that cannot be said.
        calls: module name -> times it ran in one forward pass.
    """

    def __init__(self) -> None:
        self.layouts: dict[str, InstanceLayout | str] = {}
        self.calls: Counter[str] = Counter()


def small_example(model: nn.Module, example: Example) -> Example:
    """Give two different instances, with pictures cut to at most 128 pixels a side if that runs."""

    def cut(leaf: object) -> object:
        if isinstance(leaf, Tensor) and leaf.dim() == 4 and leaf.is_floating_point():
            return leaf[..., :SMALL, :SMALL]
        return leaf

    args, kwargs = pytree.tree_map(cut, (example.args, dict(example.kwargs)))
    small = Example(args, kwargs).batched(2)
    try:
        small.run(model)
    except Exception as error:  # any model may refuse another size, in its own words
        reraise_ours(error)
        logger.debug("The model does not run on %d pixels: %s", SMALL, error)
        return example.batched(2)
    return small


def probe(model: nn.Module, example: Example, groups: Sequence[NeuronGroup]) -> Probe:
    """Run two instances, change the second, and see which rows of each layer's input change.

    Args:
        model: dense, in eval mode.
        example: a call with two instances.
        groups: whose layers are watched.
    """
    result = Probe()
    watched = {name for group in groups for name in _layers(group)}
    other = example.batched(2, seed=1)
    mixed = pytree.tree_map(
        _mix, (example.args, dict(example.kwargs)), (other.args, dict(other.kwargs))
    )
    seen: list[dict[str, Tensor]] = []
    for call in (example, Example(*mixed)):
        inputs: dict[str, Tensor] = {}
        result.calls.clear()
        handles = []
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(_counter(result.calls, name)))
            if name in watched:
                handles.append(module.register_forward_pre_hook(_keeper(inputs, name)))
        try:
            with torch.random.fork_rng(devices=[]):  # chance falls alike in both runs
                torch.manual_seed(0)
                call.run(model)
        finally:
            for handle in handles:
                handle.remove()
        seen.append(inputs)
    for group in groups:
        first, *others = _layers(group)
        layout = _layout_at(first, *seen)
        for name in others:
            if isinstance(layout, InstanceLayout) and (fault := _apart(name, layout, *seen)):
                layout = fault
        result.layouts[group.name] = layout
    return result


def _layers(group: NeuronGroup) -> list[str]:
    """Name the layers that make or read a group's neurons, the gate's owner first."""
    return list(dict.fromkeys(c.module for c in (*group.producers, *group.consumers)))


def _mix(first: object, second: object) -> object:
    """Take instance 0 of one call and instance 1 of another."""
    if not isinstance(first, Tensor) or not isinstance(second, Tensor) or not first.dim():
        return first
    alike = first.shape[0] == 2 and first.shape == second.shape
    return torch.cat([first[:1], second[1:]]) if alike else first


def _counter(calls: Counter[str], name: str) -> Hook:
    def hook(_module: nn.Module, _args: tuple[Any, ...]) -> None:
        calls[name] += 1

    return hook


def _keeper(inputs: dict[str, Tensor], name: str) -> Hook:
    def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor) and not is_functorch_wrapped_tensor(args[0]):
            # A row of channels is as good as its sum, which a change of any of them changes.
            inputs[name] = args[0].detach().sum(-1, keepdim=True, dtype=torch.float64)

    return hook


def _layout_at(
    name: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor]
) -> InstanceLayout | str:
    """Say where the batch is in a layer's input, or why that cannot be said."""
    if name not in before or name not in after:
        return f"{name} did not run on tensors of the whole batch"
    return _layout(before[name], after[name])


def _apart(
    name: str,
    layout: InstanceLayout,
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
) -> str | None:
    """Say why the rows of another layer of a group are not those of its first, or None."""
    found = _layout_at(name, before, after)
    if found == CONSTANT and layout.axis == 0 and before[name].shape[0] % 2 == 0:
        return None
    if isinstance(found, str):
        return f"at {name} {found}"
    if found.axis != layout.axis:
        return f"at {name} the batch lies along another axis"
    return None


def _layout(before: Tensor, after: Tensor) -> InstanceLayout | str:
    if before.shape != after.shape:
        return "its input's shape depends on the input's values"
    changed = before != after
    rows = changed.flatten(1).any(1) if changed.dim() > 1 else changed
    count = len(rows)
    if count % 2 == 0 and rows[count // 2 :].any() and not rows[: count // 2].any():
        return InstanceLayout(0, folded=count != 2)
    if before.dim() == 3 and before.shape[1] == 2:
        columns = changed.any(2).any(0)
        if bool(columns[1]) and not bool(columns[0]):
            return InstanceLayout(1)
    if not bool(changed.any()):
        return CONSTANT
    return "the rows of different inputs interleave, so no gate can tell them apart"
