"""What experts are of a model's neurons, and how often inputs are computed by each of them."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.gate.call import recording
from dynprune.gate.route import routers
from dynprune.host.modes import at_inference
from dynprune.measure.neurons import TYPES
from dynprune.models import is_fixed, records_of
from dynprune.rewrite.cuts import expert_groups, fixed_groups

__all__ = ["ExpertUse", "ExpertUseReport", "expert_use"]


@dataclass(frozen=True)
class ExpertUse:
    """The neurons of one group, by what every input computes of them.

    Attributes:
        name: of the group.
        kind: ``ffn``, ``qk`` or ``v``.
        neurons: of the dense group.
        kept: neurons that one input, or one token, computes.
        types: neurons in every set (I), in some (II) and in none (III): the plan of execution.
        experts: sets; 1 where there is nothing to choose.
        grain: what chooses; None where nothing does.
        use: share of the inputs, or of the tokens, that each expert got.
    """

    name: str
    kind: str
    neurons: int
    kept: int
    types: dict[str, int]
    experts: int
    grain: str | None
    use: tuple[float, ...]


@dataclass(frozen=True)
class ExpertUseReport:
    """The groups of a model with experts or fixed sets.

    Attributes:
        images: that were run.
        groups: those with experts first.
    """

    images: int
    groups: tuple[ExpertUse, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Neurons of each type, in all groups."""
        return {name: sum(group.types[name] for group in self.groups) for name in TYPES}

    def to_json(self) -> dict[str, Any]:
        """Return the document of ``dynprune report neurons --json`` for such a model."""
        groups = [{**asdict(group), "use": list(group.use)} for group in self.groups]
        return {"images": self.images, "types": self.counts, "groups": groups}


def expert_use(
    model: nn.Module,
    calls: Sequence[Example],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> ExpertUseReport:
    """Run a model with experts or fixed sets on inputs, and count which expert computed them.

    Args:
        model: as `dynprune.apply` made it with ``choose: experts``, ``auto`` or ``fixed``.
        calls: inputs.
        progress: called with the runs done and all runs.

    Raises:
        UsageError: the model has neither, or there is no call.
    """
    records = records_of(model)
    if not is_fixed(model):
        raise UsageError("The model has no experts and no fixed sets: call dynprune.apply first.")
    if not calls:
        raise UsageError("No image was given, and the use of experts is counted on images.")
    names = {router.members: name for name, router in routers(model).items()}
    got: dict[str, Counter[int]] = {name: Counter() for name in names.values()}
    images = 0
    with at_inference(model):
        for index, call in enumerate(calls):
            with recording() as seen:
                call.run(model)
            for observations in seen.values():
                for one in observations:
                    if one.neurons in names:
                        chosen = one.selection.index.flatten()
                        got[names[one.neurons]].update(chosen.tolist())
            images += call.batch
            if progress is not None:
                progress(index + 1, len(calls))
    groups = [_routed(group, got[group["name"]]) for group in expert_groups(records)]
    groups += [_fixed(group) for group in fixed_groups(records)]
    return ExpertUseReport(images, tuple(groups))


def _routed(group: Any, got: Counter[int]) -> ExpertUse:
    sets, neurons = group["sets"], group["neurons"]
    often = torch.bincount(torch.tensor(sets).flatten(), minlength=neurons)
    every, none = int((often == len(sets)).sum()), int((often == 0).sum())
    total = max(1, sum(got.values()))
    return ExpertUse(
        name=group["name"],
        kind=group["kind"],
        neurons=neurons,
        kept=len(sets[0]),
        types=dict(zip(TYPES, (every, neurons - every - none, none), strict=True)),
        experts=len(sets),
        grain=group["grain"],
        use=tuple(got[m] / total for m in range(len(sets))),
    )


def _fixed(group: Any) -> ExpertUse:
    kept, neurons = len(group["kept"]), group["neurons"]
    types = dict(zip(TYPES, (kept, 0, neurons - kept), strict=True))
    return ExpertUse(group["name"], group["kind"], neurons, kept, types, 1, None, (1.0,))
