"""What the neurons of a gated model do over a data set: how useful, how often kept, how alike."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.gate import gates, is_gated, recording, set_execution
from dynprune.host.modes import at_inference
from dynprune.measure.moments import measure
from dynprune.measure.overlap import DomainOverlap, Overlap, overlap_between, overlap_of

__all__ = [
    "LARGE_RANGE",
    "PERCENTILES",
    "SMALL_MEDIAN",
    "TYPES",
    "GroupNeurons",
    "NeuronReport",
    "neuron_report",
    "neuron_types",
]

PERCENTILES = (5.0, 95.0)
"""Between which of its importances, over the images, a neuron's range lies."""

LARGE_RANGE = 1.0
"""A range is large above this many times the neuron's own median or its group's level, whichever
is more: the neuron swings by more than its own size."""

SMALL_MEDIAN = 0.1
"""A median is small below this many times its group's level: a usual neuron counts ten times as
much."""

TYPES = ("I", "II", "III")
"""Always useful (large median, small range); depends on the input (large range); never useful
(small median, small range)."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class GroupNeurons:
    """The neurons of one group over a data set.

    The importance of a neuron on an image is how far the group's output moves when the neuron is
    skipped there, while all others are kept.

    Attributes:
        name: of the group.
        kind: ``ffn``, ``qk`` or ``v``.
        kept: neurons that every image keeps.
        median: (neurons,) importance, over the images.
        low: (neurons,) fifth percentile of the importance.
        high: (neurons,) 95th percentile of the importance.
        firing_rate: (neurons,) share of the images, or of all tokens where each chooses for itself,
            for which the gate keeps the neuron.
        types: (neurons,) 0, 1 or 2 for the types I, II and III, see `neuron_types`.
        overlap: of the sets that two images keep; None of a single image.
    """

    name: str
    kind: str
    kept: int
    median: Tensor
    low: Tensor
    high: Tensor
    firing_rate: Tensor
    types: Tensor
    overlap: Overlap | None

    @property
    def neurons(self) -> int:
        """Neurons of the group."""
        return len(self.median)

    @property
    def counts(self) -> dict[str, int]:
        """Neurons of each type."""
        return {name: int((self.types == index).sum()) for index, name in enumerate(TYPES)}

    @property
    def always(self) -> int:
        """Neurons that every image keeps."""
        return int((self.firing_rate == 1).sum())

    @property
    def never(self) -> int:
        """Neurons that no image keeps."""
        return int((self.firing_rate == 0).sum())

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values, importances to five digits."""
        return {
            "name": self.name,
            "kind": self.kind,
            "neurons": self.neurons,
            "kept": self.kept,
            "types": self.counts,
            "always_kept": self.always,
            "never_kept": self.never,
            "overlap": None if self.overlap is None else self.overlap.to_json(),
            "per_neuron": {
                "type": [TYPES[index] for index in self.types.tolist()],
                "median": _rounded(self.median),
                "low": _rounded(self.low),
                "high": _rounded(self.high),
                "firing_rate": _rounded(self.firing_rate),
            },
        }


@dataclass(frozen=True)
class NeuronReport:
    """The neurons of every gated group.

    Attributes:
        images: that were run.
        groups: in the model's order.
        worlds: images of each world; empty where the images are not told apart.
        world_overlap: mean over the groups, by pairs of worlds.
    """

    images: int
    groups: tuple[GroupNeurons, ...]
    worlds: Mapping[str, int]
    world_overlap: tuple[DomainOverlap, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Neurons of each type, in all groups."""
        return {name: sum(group.counts[name] for group in self.groups) for name in TYPES}

    @property
    def overlap(self) -> Overlap | None:
        """Mean over the groups; None of a single image."""
        return Overlap.mean([g.overlap for g in self.groups if g.overlap is not None])

    def to_json(self) -> dict[str, Any]:
        """Return the document of ``dynprune report neurons --json``."""
        return {
            "images": self.images,
            "thresholds": {
                "percentiles": list(PERCENTILES),
                "large_range": LARGE_RANGE,
                "small_median": SMALL_MEDIAN,
            },
            "types": self.counts,
            "overlap": None if self.overlap is None else self.overlap.to_json(),
            "worlds": dict(self.worlds),
            "world_overlap": [pair.to_json() for pair in self.world_overlap],
            "groups": [group.to_json() for group in self.groups],
        }


def neuron_report(
    model: nn.Module,
    calls: Sequence[Example],
    *,
    worlds: Sequence[str] = (),
    progress: Progress | None = None,
) -> NeuronReport:
    """Measure every gated neuron over a data set.

    Importance is measured while every neuron is kept, kept sets in compact execution. The model is
    left as it came.

    Args:
        model: gated.
        calls: one image each; gone through twice.
        worlds: where each image comes from, as `dynprune.measure.overlap.domains_of` tells; empty
            where that does not matter.
        progress: called with the runs done and all runs, two for every image.

    Raises:
        UsageError: where the model is not gated, there is no call, or ``worlds`` has another
            length.
    """
    if not is_gated(model):
        raise UsageError("The model is not gated, so no neuron is chosen: call dynprune.apply.")
    if not calls:
        raise UsageError("No image was given, and neurons are measured on images.")
    if worlds and len(worlds) != len(calls):
        raise UsageError(
            f"{len(worlds)} worlds are named for {len(calls)} images; name each one's."
        )
    tell = progress or (lambda _done, _total: None)
    masks = _kept_sets(model, calls, tell)
    moments = measure(model, _second_pass(calls, tell))
    groups = []
    for name, gate in gates(model).items():
        importance = moments[name].importance(gate.mean).detach()
        kept = masks[name]
        low, median, high = _percentiles(importance, (PERCENTILES[0], 50.0, PERCENTILES[1]))
        groups.append(
            GroupNeurons(
                name=name,
                kind=gate.kind,
                kept=round(float(kept[0].sum())),
                median=median,
                low=low,
                high=high,
                firing_rate=kept.mean(0),
                types=neuron_types(median, high - low),
                overlap=overlap_of(kept, worlds),
            )
        )
    pairs = overlap_between(list(masks.values()), worlds)
    return NeuronReport(len(calls), tuple(groups), dict(Counter(worlds)), pairs)


def neuron_types(median: Tensor, spread: Tensor) -> Tensor:
    """Return the types of a group's neurons apart.

    With the group's level, the mean of its medians: type II where the range exceeds
    `LARGE_RANGE` times the median or the level, whichever is more; else type III where the median
    is under `SMALL_MEDIAN` times the level; else type I.

    Args:
        median: of each neuron's importance over the images.
        spread: range of the same.

    Shape:
        - median, spread: (neurons,)
        - Output: (neurons,), int64: 0, 1 or 2 for the types I, II and III

    Source: the types are those of DynaSegFormer, arXiv 2111.09499, Fig. 2; it gives no thresholds.
    """
    level = median.mean()
    moves = spread > LARGE_RANGE * torch.maximum(median, level)
    small = median < SMALL_MEDIAN * level
    return torch.where(moves, 1, torch.where(small, 2, 0))


def _kept_sets(model: nn.Module, calls: Sequence[Example], tell: Progress) -> dict[str, Tensor]:
    """Run compactly; give each group's (images, neurons) ones and zeros, or shares of tokens."""
    found: dict[str, list[Tensor]] = {name: [] for name in gates(model)}
    requested = {name: gate.requested for name, gate in gates(model).items()}
    try:
        set_execution(model, "compact")
        with at_inference(model):
            for index, call in enumerate(calls):
                with recording() as seen:
                    call.run(model)
                for name, (observation,) in seen.items():
                    keep = observation.selection.keep
                    if observation.neurons.per_token:  # the share of an image's tokens
                        keep = keep.unflatten(0, (call.batch, -1)).mean(1)
                    found[name].append(keep)
                tell(index + 1, 2 * len(calls))
    finally:
        for name, gate in gates(model).items():
            gate.requested = requested[name]
        for gate in gates(model).values():
            gate.sync()
    return {name: torch.cat(masks) for name, masks in found.items()}


def _second_pass(calls: Sequence[Example], tell: Progress) -> Iterator[Example]:
    for index, call in enumerate(calls):
        yield call
        tell(len(calls) + index + 1, 2 * len(calls))


def _percentiles(values: Tensor, at: Sequence[float]) -> Tensor:
    """Return percentiles over the first axis; torch.quantile refuses data sets of some size."""
    return torch.from_numpy(np.percentile(values.cpu().numpy(), at, axis=0))


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.5g}") for value in values.tolist()]
