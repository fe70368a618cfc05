"""Run a dense model a few times to see where its batch goes and which modules run once."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence, Set
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils import _pytree as pytree

from dynprune.example import Example
from dynprune.gate.instances import InstanceLayout
from dynprune.graph.neurons import NeuronGroup
from dynprune.host.arguments import copied
from dynprune.host.chance import seeded
from dynprune.host.failures import first_line, reraise_ours
from dynprune.host.trial import trial
from dynprune.host.variation import packing, several, variants
from dynprune.host.variation import small_example as small_call

__all__ = ["Probe", "probe", "small_example"]

Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]

#: module -> its input in each of its calls, channels summed up.
Inputs = dict[str, list[Tensor]]

logger = logging.getLogger(__name__)

#: Why a layer's input has no batch.
CONSTANT = "its input does not depend on the model's input"

#: Fraction of the change of an instance's own rows up to which other rows change by rounding alone:
#: a number taken over the whole batch (a softmax minus its maximum) moves all rows by that.
ROUNDING = 1e-4


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
    """Return a call of two different instances, with pictures cut to 128 pixels if that runs.

    Where the model takes no two instances the example is returned as it is, and `probe` says so.
    """
    found = small_call(model, example)
    return example if isinstance(found, str) else found


def probe(model: nn.Module, example: Example, groups: Sequence[NeuronGroup]) -> Probe:
    """Run two instances, change the second, and see which rows of each layer's input change.

    Args:
        model: dense, in eval mode.
        example: a call with two instances; the groups of a model that takes none are refused.
        groups: whose layers are watched.
    """
    result = Probe()
    watched = {name for group in groups for name in _layers(group)}
    before, result.calls = _inputs(model, example, watched)
    packed = packing(example)
    after = _with_another_second(model, example, watched) if example.batch == 2 else None
    if not isinstance(after, dict):
        result.layouts = dict.fromkeys(
            (group.name for group in groups), after or _alone(model, example)
        )
        return result
    for group in groups:
        first, *others = _layers(group)
        layout = _layout_at(first, before, after)
        for name in others:
            if isinstance(layout, InstanceLayout) and (
                fault_at := _apart(name, layout, before, after)
            ):
                layout = fault_at
        if packed is not None and isinstance(layout, InstanceLayout):
            layout = _unpacked(layout, before[first], packed)
        result.layouts[group.name] = layout
    return result


def _inputs(model: nn.Module, call: Example, watched: Set[str]) -> tuple[Inputs, Counter[str]]:
    """Run a call and keep what the watched layers get, and how often every module runs."""
    inputs: Inputs = {}
    calls: Counter[str] = Counter()
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(_counter(calls, name), with_kwargs=True))
        if name in watched:
            keeper = _keeper(inputs, name)
            handles.append(module.register_forward_pre_hook(keeper, with_kwargs=True))
    try:
        with trial(model), seeded(0):  # chance falls alike in both runs
            args, kwargs = copied((call.args, dict(call.kwargs)))
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return inputs, calls


def _alone(model: nn.Module, example: Example) -> str:
    """Say why a model does not run on two instances."""
    if (packed := packing(example)) is not None:
        return f"its inputs lie in one row, whose parts {packed[0]} tells and a gate does not see"
    found = several(model, example)
    return found if isinstance(found, str) else "the batch is no axis of the first input"


def _with_another_second(model: nn.Module, example: Example, watched: Set[str]) -> Inputs | str:
    """Run the call with another second instance, or say why the model does not take one."""
    failure = "nothing in its inputs can be changed"
    for place, other in enumerate(variants(example, 2, seed=1)):
        mixed = pytree.tree_map(
            _mix, (example.args, dict(example.kwargs)), (other.args, dict(other.kwargs))
        )
        try:
            return _inputs(model, Example(*mixed), watched)[0]
        except Exception as error:  # any model may refuse a call, in its own words
            reraise_ours(error)
            logger.debug("The model does not take another second instance: %s", error)
            failure = failure if place else first_line(error)
    return f"no second input can be tried beside the first: {failure}"


def _layers(group: NeuronGroup) -> list[str]:
    """Name the layers that make or read a group's neurons, the gate's owner first."""
    return list(dict.fromkeys(c.module for c in (*group.producers, *group.consumers)))


def _mix(first: object, second: object) -> object:
    """Take instance 0 of one call and instance 1 of another."""
    if not isinstance(first, Tensor) or not isinstance(second, Tensor) or not first.dim():
        return first
    half = first.shape[0] // 2
    alike = first.shape[0] == 2 * half and first.shape == second.shape
    return torch.cat([first[:half], second[half:]]) if alike else first


def _counter(calls: Counter[str], name: str) -> Hook:
    def hook(_module: nn.Module, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        calls[name] += 1

    return hook


def _keeper(inputs: Inputs, name: str) -> Hook:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.dim()]
        if given and not is_functorch_wrapped_tensor(given[0]):
            # A row of channels is as good as a random sum, which a change of any of them changes.
            x = torch.atleast_2d(given[0].detach())
            x = x if x.dtype == torch.float64 else x.float()
            inputs.setdefault(name, []).append(x @ _mixer(x.shape[-1]).to(x))

    return hook


@lru_cache(maxsize=64)
def _mixer(width: int) -> Tensor:
    random = torch.Generator().manual_seed(width)
    return torch.randn(width, 2, generator=random, dtype=torch.float64)


def _layout_at(name: str, before: Inputs, after: Inputs) -> InstanceLayout | str:
    """Say where the batch is in a layer's input, or why that cannot be said."""
    if name not in before or name not in after:
        return f"{name} did not run on tensors of the whole batch"
    if len(before[name]) != len(after[name]):
        return f"how often {name} runs depends on the input's values"
    found = [_layout(*pair) for pair in zip(before[name], after[name], strict=True)]
    faults = [layout for layout in found if isinstance(layout, str)]
    if faults:
        return faults[0]
    return found[0] if len(set(found)) == 1 else f"{name} runs on inputs of different layouts"


def _apart(
    name: str,
    layout: InstanceLayout,
    before: Inputs,
    after: Inputs,
) -> str | None:
    """Say why the rows of another layer of a group are not those of its first, or None."""
    found = _layout_at(name, before, after)
    if found == CONSTANT and layout.axis == 0 and before[name][0].shape[0] % 2 == 0:
        return None
    if isinstance(found, str):
        return f"at {name} {found}"
    if found.axis != layout.axis:
        return f"at {name} the batch lies along another axis"
    return None


def _layout(before: Tensor, after: Tensor) -> InstanceLayout | str:
    if before.shape != after.shape:
        return "its input's shape depends on the input's values"
    change = (before - after).abs().amax(-1, keepdim=True)
    changed = change > ROUNDING * change.max()
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


def _unpacked(
    layout: InstanceLayout, inputs: Sequence[Tensor], packed: tuple[str, int]
) -> InstanceLayout | str:
    """Refuse rows that hold several pieces, whose ends only another input tells."""
    sizes, length = packed
    rows = {tensor.shape[:-1].numel() for tensor in inputs}
    if layout.folded or not rows.isdisjoint({length, 2 * length}):
        return f"its rows are parts of inputs, whose ends {sizes} tells and a gate does not see"
    return layout
