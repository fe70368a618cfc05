"""Find the gate projection of a gated hidden layer, a(g) u, by running the model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from dynprune.example import Example
from dynprune.gate.plan import GroupPlan
from dynprune.gate.token_predictor import ACTIVATIONS
from dynprune.graph.neurons import NeuronGroup
from dynprune.host.outputs import close
from dynprune.host.trial import trial

__all__ = ["with_activations"]


def with_activations(
    model: nn.Module, example: Example, plans: Sequence[GroupPlan]
) -> list[GroupPlan]:
    """Note in the plans that choose by a gate projection what it passes through.

    The model is run once; a group is such a layer where what its consumer reads is one of
    `ACTIVATIONS` of its first producer's output, times that of its second.

    Args:
        model: dense, in eval mode.
        example: one call of it.
        plans: of its groups.

    Returns:
        The plans; those whose groups are no such layers are refused.
    """
    wanted = [p for p in plans if p.mode != "refused" and p.config.predict != "low-rank"]
    if not wanted:
        return list(plans)
    names = {name for plan in wanted for name in plan.group.modules}
    with torch.no_grad():
        given, made = _observed(model, example, names)
    found: dict[str, GroupPlan] = {}
    for plan in wanted:
        fault = _fault(plan.group)
        activation = None if fault else _activation(plan.group, given, made)
        if activation is None:
            fault = fault or "what reads its neurons is not an activation of the first times others"
            plan = plan.refused(f"it has no gate projection to choose by: {fault}")
        else:
            plan = replace(plan, config=replace(plan.config, activation=activation))
        found[plan.group.name] = plan
    return [found.get(plan.group.name, plan) for plan in plans]


def _fault(group: NeuronGroup) -> str | None:
    """Say why a group is no gated layer by its form alone, or None."""
    if len(group.producers) != 2 or group.producers[0].module == group.producers[1].module:
        return f"its neurons come from {len(group.producers)} layers, and not from two"
    if not all(c.is_whole for c in (*group.producers, *group.consumers)):
        return "its layers hold other neurons besides"
    return None


def _activation(
    group: NeuronGroup, given: Mapping[str, Tensor], made: Mapping[str, Tensor]
) -> str | None:
    """Name what the first producer's output passes through, or None where it is none known."""
    first, second = (made.get(channels.module) for channels in group.producers)
    read = given.get(group.consumers[0].module)
    if first is None or second is None or read is None or first.shape != read.shape:
        return None
    for name, function in ACTIVATIONS.items():
        if second.shape == read.shape and close([function(first) * second], [read]):
            return name
    return None


def _observed(
    model: nn.Module, example: Example, names: set[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Run a call; return what these modules got and gave, where they run once."""
    given: dict[str, Tensor] = {}
    made: dict[str, Tensor] = {}
    often: set[str] = set()
    handles = []
    for name in names:

        def note(
            _module: nn.Module, args: tuple[object, ...], output: object, name: str = name
        ) -> None:
            if name in made:
                often.add(name)
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                given[name], made[name] = args[0].detach().clone(), output.detach().clone()

        handles.append(model.get_submodule(name).register_forward_hook(note))
    try:
        with trial(model):
            example.run(model)
    finally:
        for handle in handles:
            handle.remove()
    for name in often:
        given.pop(name, None)
        made.pop(name, None)
    return given, made
