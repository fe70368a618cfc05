"""Find what a hidden layer does to its preactivations, a(y) or a(g) u, by running the model."""

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
    """Note in the plans that choose by preactivations or gate projections what these pass through.

    The model is run once; a group is such a layer where what its consumer reads is one of
    `ACTIVATIONS` of its first producer's output; times that of its second, in a gated layer.

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
        gated = plan.config.predict != "preactivation"
        fault = _fault(plan.group, 2 if gated else 1)
        activation = None if fault else _activation(plan.group, given, made)
        if activation is None:
            what = "gate projection" if gated else "preactivation"
            fault = fault or "between its layers is something else than an activation that is known"
            plan = plan.refused(
                f"it has no {what} to choose by: {fault} (apply.gate.predict: low-rank asks none)"
            )
        else:
            plan = replace(plan, config=replace(plan.config, activation=activation))
        found[plan.group.name] = plan
    return [found.get(plan.group.name, plan) for plan in plans]


def _fault(group: NeuronGroup, wanted: int) -> str | None:
    """Say why a group has not the form of such a layer, or None."""
    makers = len({channels.module for channels in group.producers})
    if makers != wanted or len(group.producers) != wanted:
        return f"its neurons come from {makers} layers, and not from {wanted}"
    if not all(c.is_whole for c in (*group.producers, *group.consumers)):
        return "its layers hold other neurons besides"
    return None


def _activation(
    group: NeuronGroup, given: Mapping[str, Tensor], made: Mapping[str, Tensor]
) -> str | None:
    """Name what the first producer's output passes through, or None where it is none known."""
    ys = [made[c.module] for c in group.producers if c.module in made]
    read = given.get(group.consumers[0].module)
    if read is None or len(ys) < len(group.producers) or any(y.shape != read.shape for y in ys):
        return None
    for name, function in ACTIVATIONS.items():
        found = function(ys[0]) if len(ys) == 1 else function(ys[0]) * ys[1]
        if close([found], [read]):
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
