"""From which prune ratio on gates pay for themselves, module by module."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dynprune.example import Example
from dynprune.gate import attached, gates, inject, remove
from dynprune.gate.plan import GroupPlan, gated
from dynprune.graph.groups import ancestor
from dynprune.modes import evaluating
from dynprune.report.latency import interleaved
from dynprune.report.macs import without_gates

__all__ = ["BreakEven", "break_even", "crossing"]

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
        """Give a JSON form."""
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
    together: dict[str, list[GroupPlan]] = defaultdict(list)
    for plan in gated(attached(model).plans):
        together[ancestor(plan.group)].append(plan)
    dense, pruned = without_gates(model), without_gates(model)
    with evaluating(dense), evaluating(pruned), torch.no_grad():
        calls = _captured(dense, example, set(together))
        return [
            _timed(dense, pruned, plans, module, calls[module], repeats, ratios)
            for module, plans in together.items()
        ]


def _timed(
    dense: nn.Module,
    pruned: nn.Module,
    plans: Sequence[GroupPlan],
    module: str,
    call: Example,
    repeats: int,
    ratios: Sequence[float],
) -> BreakEven:
    inject(pruned, plans)
    try:
        host, bare = pruned.get_submodule(module), dense.get_submodule(module)
        found = gates(pruned).values()

        def prune(ratio: float) -> float:
            for gate in found:
                gate.call.instances = call.batch
                gate.set_prune_ratio(ratio)
            return 1.0 - statistics.mean(gate.keep_ratio for gate in found)

        def at(ratio: float) -> Callable[[], None]:
            def run() -> None:
                prune(ratio)
                call.run(host)

            return run

        runs: dict[str, Callable[[], None]] = {"dense": lambda: call.run(bare)}
        runs |= {str(ratio): at(ratio) for ratio in ratios}
        times = interleaved(runs, repeats=repeats, warmup=2)
        points = tuple((prune(ratio), statistics.median(times[str(ratio)])) for ratio in ratios)
    finally:
        remove(pruned)
    dense_ms = statistics.median(times["dense"])
    names = tuple(plan.group.name for plan in plans)
    return BreakEven(module, names, dense_ms, points, crossing(dense_ms, points))


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
