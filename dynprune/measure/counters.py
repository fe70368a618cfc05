"""Other people's counters beside ours, with the reason for every difference."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.host.quiet import without_logs
from dynprune.measure.executed import ExecutedMacs, count_executed

__all__ = ["CounterRow", "compare_counters", "flop_counter_macs", "fvcore_macs"]

_PRODUCTS = ("conv", "linear", "addmm", "matmul", "mm", "bmm", "baddbmm", "einsum")
"""The operators of fvcore's own list that are products; the others it counts are not MACs."""

_ATTENTION = "scaled_dot_product"


def _baddbmm_flops(_: Sequence[int], a: Sequence[int], b: Sequence[int], **__: object) -> int:
    """Count ``self += a @ b`` for a: (B, M, K), b: (B, K, N), in torch's unit."""
    return 2 * math.prod(a) * b[-1]


_IN_PLACE = {torch.ops.aten.baddbmm_: _baddbmm_flops}
"""torch's counter has a formula for the product, and none for the same product in place."""


@dataclass(frozen=True)
class CounterRow:
    """What one counter says of one call.

    Attributes:
        counter: its name.
        macs: multiply-adds, in the unit of this report whatever the counter's own unit.
        comparable: our count of the operators that this counter has a formula for.
        reason: why ``macs`` is not our total.
    """

    counter: str
    macs: int
    comparable: int
    reason: str


def fvcore_macs(model: nn.Module, example: Example) -> dict[str, int]:
    """Count by fvcore: operator -> multiply-adds, products alone.

    Args:
        model: in evaluation mode; must be traceable by `torch.jit.trace`.
        example: a call with positional arguments alone, as fvcore demands.
    """
    if example.kwargs:
        raise UsageError(
            f"fvcore counts calls with positional arguments alone, not {sorted(example.kwargs)}"
        )
    # Its tracer reports each operator that it has no formula for.
    with without_logs("fvcore.nn.jit_analysis", least=logging.ERROR):
        analysis = FlopCountAnalysis(model, example.args)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.tracer_warnings("none")
        by_op = analysis.by_operator()
    return {op: int(macs) for op, macs in by_op.items() if op in _PRODUCTS}


def flop_counter_macs(model: nn.Module, example: Example) -> dict[str, int]:
    """Count by `torch.utils.flop_counter`, halved: operator -> multiply-adds.

    Args:
        model: run as it is.
        example: the call.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_IN_PLACE)
    with torch.no_grad(), counter:
        example.run(model)
    found = counter.get_flop_counts().get("Global", {})
    return {str(op).removeprefix("aten."): flops // 2 for op, flops in found.items()}


def compare_counters(model: nn.Module, example: Example) -> list[CounterRow]:
    """Put fvcore's and torch's counters beside ours.

    Args:
        model: in evaluation mode.
        example: a call with positional arguments alone.
    """
    ours = count_executed(model, example)
    attention = sum(macs for op, macs in ours.by_op.items() if _ATTENTION in op)
    theirs = sum(fvcore_macs(model, example).values())
    torchs = flop_counter_macs(model, example)
    sees_attention = any(_ATTENTION in op and macs for op, macs in torchs.items())
    no_formula = f"it has no formula for attention on this device ({attention} MACs)"
    return [
        CounterRow("dynprune", ours.total, ours.total, _said(ours)),
        CounterRow(
            "fvcore", theirs, ours.total - attention, no_formula if attention else "it agrees"
        ),
        CounterRow(
            "torch.utils.flop_counter, halved",
            sum(torchs.values()),
            ours.total - (0 if sees_attention else attention),
            no_formula if attention and not sees_attention else "it agrees",
        ),
    ]


def _said(ours: ExecutedMacs) -> str:
    if not ours.uncounted:
        return "every product that ran"
    return f"without {', '.join(sorted(ours.uncounted))}, which have no formula"
