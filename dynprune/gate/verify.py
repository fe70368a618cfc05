"""Prove every neuron group right by running it, and settle in which mode it runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from dynprune.example import Example
from dynprune.gate.execution import set_execution
from dynprune.gate.inject import gates
from dynprune.gate.plan import GroupPlan
from dynprune.gate.proof import Trial
from dynprune.gate.units import Unit, units_of
from dynprune.host.progress import report_progress

__all__ = ["verify"]


def verify(
    model: nn.Module, plans: Sequence[GroupPlan], example: Example, calls: Mapping[str, int]
) -> list[GroupPlan]:
    """Try every gated group of an injected model and give its plan with the mode that is right.

    Each unit of groups runs on the inputs that it gets in a real call, with two random masks at
    batch 2. Its masked result is the reference. One run proves it whole: compact, with the weights
    of all skipped neurons changed at random, it gives the reference; then those of kept neurons,
    group by group, must change something. This is first tried on the first few tokens.

    Where it does not hold, every part is tried alone: a negative control of each group (skipped
    neurons' weights must change nothing, kept ones' something), then compact against masked. A
    group whose compact form is wrong or fails is tried in scatter form, then left masked; one that
    fails the control is refused.

    Args:
        model: injected, in eval mode, with every gate in its planned mode.
        plans: as given to `inject`.
        example: a call with two instances.
        calls: module name -> times it runs in one call.

    Returns:
        One plan for each given, in the same order.
    """
    settled: dict[str, GroupPlan] = {}
    every = gates(model)  # looked for once: a model has many modules
    waiting: dict[nn.Module, list[Unit]] = {}
    for unit in units_of(plans, calls):
        waiting.setdefault(model.get_submodule(unit.module), []).append(unit)
    busy = False

    def attempt(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        nonlocal busy
        if busy:
            return
        busy = True
        try:
            for unit in waiting.pop(module, []):
                trial = Trial(model, module, unit.plans, every, (args, dict(kwargs)))
                settled.update({plan.group.name: plan for plan in trial.settle()})
                report_progress("verify", len(settled), len(every))
        finally:
            busy = False

    handles = [m.register_forward_pre_hook(attempt, with_kwargs=True) for m in waiting]
    for gate in gates(model).values():
        gate.set_prune_ratio(0.0)
    try:
        example.run(model)
    finally:
        for handle in handles:
            handle.remove()
        for gate in gates(model).values():
            gate.set_prune_ratio(gate.final_ratio)
        set_execution(model, "compact")
    missing = "its module did not run on the example"
    return [
        settled.get(p.group.name, p.refused(missing)) if p.mode != "refused" else p for p in plans
    ]
