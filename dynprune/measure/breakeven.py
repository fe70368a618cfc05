"""From which prune ratio on gates pay for themselves, module by module."""

import copy
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dynprune.example import Example
from dynprune.gate import NeuronGate, attached, gates, inject, remove
from dynprune.gate.plan import GroupPlan, gated
from dynprune.graph.groups import ancestor
from dynprune.host.modes import evaluating
from dynprune.measure.latency import interleaved
from dynprune.measure.macs import without_gates

__all__ = ["BreakEven", "TimedModule", "at_ratios", "break_even", "crossing", "time_modules"]

RATIOS = (0.0, 0.25, 0.5, 0.75)
"""Prune ratios that are timed."""


@dataclass(frozen=True)
class BreakEven:
    """What the groups of one module cost at several prune ratios.

    Attributes:
        module: the smallest that holds these groups whole.
        groups: their names. Queries, keys and values meet in one module and share its heads'
            width, so that they are timed together.
        dense_ms: median time of the module without gates.
        points: (prune ratio after rounding, median milliseconds), gates included.
        prune_ratio: from which on the gates pay; None where they never do.
    """

    module: str
    groups: tuple[str, ...]
    dense_ms: float
    points: tuple[tuple[float, float], ...]
    prune_ratio: float | None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        return {
            "module": self.module,
            "groups": list(self.groups),
            "dense_ms": self.dense_ms,
            "points": [list(point) for point in self.points],
            "prune_ratio": self.prune_ratio,
        }


def crossing(dense_ms: float, points: Sequence[tuple[float, float]]) -> float | None:
    """Find the least prune ratio from which on no point is slower than dense.

    Between two points the time is taken as a line.

    Example:
        >>> crossing(10.0, [(0.0, 12.0), (0.5, 8.0)])
        0.25
        >>> crossing(1.0, [(0.0, 3.0), (0.5, 2.0)]) is None
        True
    """
    after: tuple[float, float] | None = None
    for ratio, ms in reversed(points):
        if ms > dense_ms:
            if after is None:
                return None
            return ratio + (after[0] - ratio) * (ms - dense_ms) / (ms - after[1])
        after = (ratio, ms)
    return None if after is None else after[0]


def break_even(
    model: nn.Module, example: Example, *, repeats: int = 9, ratios: Sequence[float] = RATIOS
) -> list[BreakEven]:
    """Time every module with gated groups, in PyTorch, against the same module without gates.

    Args:
        model: gated; left as it is.
        example: the call.
        repeats: timed runs of every form.
        ratios: prune ratios, ascending.
    """
    forms = at_ratios(ratios)
    found = []
    for timed in time_modules(without_gates(model), attached(model).plans, example, forms, repeats):
        points = tuple((1.0 - timed.kept[form], timed.gated_ms[form]) for form in forms)
        crossed = crossing(timed.dense_ms, points)
        names = tuple(plan.group.name for plan in timed.plans)
        found.append(BreakEven(timed.module, names, timed.dense_ms, points, crossed))
    return found


def at_ratios(ratios: Sequence[float]) -> dict[str, Callable[[NeuronGate], None]]:
    """Name a form for every prune ratio, for `time_modules`."""

    def prune(ratio: float) -> Callable[[NeuronGate], None]:
        return lambda gate: gate.set_prune_ratio(ratio)

    return {str(ratio): prune(ratio) for ratio in ratios}


@dataclass(frozen=True)
class TimedModule:
    """What the groups of one module cost in several forms, in PyTorch.

    Attributes:
        module: the smallest that holds these groups whole.
        plans: of the groups.
        dense_ms: median time of the module without gates.
        gated_ms: form -> median time with gates.
        kept: form -> mean share of neurons kept.
    """

    module: str
    plans: tuple[GroupPlan, ...]
    dense_ms: float
    gated_ms: Mapping[str, float]
    kept: Mapping[str, float]


def time_modules(
    model: nn.Module,
    plans: Sequence[GroupPlan],
    example: Example,
    forms: Mapping[str, Callable[[NeuronGate], None]],
    repeats: int,
) -> list[TimedModule]:
    """Time every module whose groups are to be gated, dense and in every form, in turns.

    Args:
        model: without gates; left as it is.
        plans: of its groups; those without a gate are passed over.
        example: the call.
        forms: name -> what it sets on each gate before a run.
        repeats: timed runs of every form.
    """
    together: dict[str, list[GroupPlan]] = defaultdict(list)
    for plan in gated(plans):
        together[ancestor(plan.group)].append(plan)
    pruned = copy.deepcopy(model)
    with evaluating(model), evaluating(pruned), torch.no_grad():
        calls = _captured(model, example, set(together))
        return [
            _timed(model, pruned, found, module, calls[module], forms, repeats)
            for module, found in together.items()
        ]


def _timed(
    dense: nn.Module,
    pruned: nn.Module,
    plans: Sequence[GroupPlan],
    module: str,
    call: Example,
    forms: Mapping[str, Callable[[NeuronGate], None]],
    repeats: int,
) -> TimedModule:
    inject(pruned, plans)
    try:
        host, bare = pruned.get_submodule(module), dense.get_submodule(module)
        found = gates(pruned).values()

        def change(form: str) -> float:
            for gate in found:
                forms[form](gate)
            return statistics.mean(gate.keep_ratio for gate in found)

        def at(form: str) -> Callable[[], None]:
            def run() -> None:
                change(form)
                call.run(host)

            return run

        runs: dict[str, Callable[[], None]] = {"dense": lambda: call.run(bare)}
        runs |= {f"gated {form}": at(form) for form in forms}
        times = interleaved(runs, repeats=repeats, warmup=2)
        kept = {form: change(form) for form in forms}
    finally:
        remove(pruned)
    return TimedModule(
        module,
        tuple(plans),
        statistics.median(times["dense"]),
        {form: statistics.median(times[f"gated {form}"]) for form in forms},
        kept,
    )


def _captured(model: nn.Module, example: Example, names: set[str]) -> dict[str, Example]:
    """Record the first call of each named module in a run of the model."""
    calls: dict[str, Example] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name not in calls:
                held = pytree.tree_map_only(Tensor, torch.clone, (args, kwargs))
                calls[name] = Example(*held)

        return hook

    handles = [
        model.get_submodule(name).register_forward_pre_hook(keep(name), with_kwargs=True)
        for name in names
    ]
    try:
        example.run(model)
    finally:
        for handle in handles:
            handle.remove()
    return calls
