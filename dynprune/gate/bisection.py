"""Find the gates under which a model does not run: its code may ask for the layer it knew."""

import logging
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from dynprune.example import Example
from dynprune.gate.inject import gates, inject, remove
from dynprune.gate.plan import GroupPlan, gated
from dynprune.host.failures import reraise_ours
from dynprune.host.trial import trial

__all__ = ["those_that_run"]

logger = logging.getLogger(__name__)


def those_that_run(
    model: nn.Module, plans: Sequence[GroupPlan], example: Example
) -> list[GroupPlan]:
    """Refuse the plans whose gates, keeping every neuron, make the model fail.

    All are tried at once; only where that fails they are tried in halves.

    Args:
        model: dense, in eval mode; as before afterwards.
        plans: as for `inject`.
        example: a call with two instances.
    """
    failures = dict(_failures(model, gated(plans), example))
    left = [p.refused(failures[p.group.name]) if p.group.name in failures else p for p in plans]
    together = _failure(model, gated(left), example) if failures else None
    return left if together is None else [plan.refused(together) for plan in left]


def _failures(
    model: nn.Module, plans: Sequence[GroupPlan], example: Example
) -> list[tuple[str, str]]:
    """Name the groups that fail alone, each with its failure."""
    failure = _failure(model, plans, example)
    if failure is None:
        return []
    if len(plans) == 1:
        return [(plans[0].group.name, failure)]
    half = len(plans) // 2
    return [
        *_failures(model, plans[:half], example),
        *_failures(model, plans[half:], example),
    ]


def _failure(model: nn.Module, plans: Sequence[GroupPlan], example: Example) -> str | None:
    """Say how the model fails with these gates in place, or None."""
    if not plans:
        return None
    inject(model, [replace(plan, products=None) for plan in plans])
    try:
        for gate in gates(model).values():
            gate.verified = "masked"
            gate.set_prune_ratio(0.0)
        with trial(model):
            example.run(model)
    except Exception as error:  # the host's own code, in its own words
        reraise_ours(error)
        logger.debug("The model fails with gates in place: %s", error, exc_info=True)
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        return f"the model fails with a gated layer in its place: {line}"
    finally:
        remove(model, untrained=True)
    return None
