"""What a finished student is measured by: mIoU by class and world, kept sets, multiply-adds."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dynprune.data import SegmentationData, normalise
from dynprune.example import Example
from dynprune.gate import gates, observing
from dynprune.measure.executed import executed
from dynprune.measure.overlap import Overlap, overlap_of
from dynprune.tasks.evaluate import evaluate, score

__all__ = ["measure"]


def measure(model: nn.Module, data: SegmentationData, size: Sequence[int]) -> dict[str, Any]:
    """Evaluate a model on every picture of ``data``, once.

    Args:
        model: a dense or a gated one.
        data: the pictures; what stands before the first ``_`` of a name is its world.
        size: height and width of the picture whose multiply-adds are counted.
    """
    worlds = [path.stem.partition("_")[0] for path in data.images]
    several = len(set(worlds)) < len(worlds) / 2 and len(set(worlds)) > 1
    parts = sorted(set(worlds)) if several else [""]
    confusion: Tensor | None = None
    by_world, order = {}, []
    with _kept_sets(model) as kept:
        for part in parts:
            rows = [i for i, world in enumerate(worlds) if not several or world == part]
            found = evaluate(model, data.subset(rows))
            order += [part] * len(rows)
            confusion = found.confusion if confusion is None else confusion + found.confusion
            if several:
                by_world[part] = found.miou
    assert confusion is not None
    whole = score(confusion, data.classes, len(data))
    names = order if several else []
    overlaps = {name: overlap_of(torch.cat(masks), names) for name, masks in kept.items()}
    mean = Overlap.mean([overlap for overlap in overlaps.values() if overlap is not None])
    gated = gates(model).values()
    return {
        "miou": whole.miou,
        "pixel_accuracy": whole.pixel_accuracy,
        "macs": executed(model, _picture(data, size)),
        "overlap": None if mean is None else mean.to_json(),
        "per_class": whole.per_class,
        "per_world": by_world,
        "overlap_per_group": {
            name: None if overlap is None else overlap.to_json()
            for name, overlap in overlaps.items()
        },
        "gates": {
            "parameters": sum(p.numel() for g in gated for p in g.parameters()),
            "macs": sum(gate.macs for gate in gated),
        },
        "parameters": _running_parameters(model),
    }


def _picture(data: SegmentationData, size: Sequence[int]) -> Example:
    for index in range(len(data)):
        image, _ = data.load(index)
        if tuple(image.shape[1:]) == tuple(size):
            return Example((normalise(image[None]),))
    raise SystemExit(f"{data.root} has no picture of {size[0]}x{size[1]} pixels")


def _running_parameters(model: nn.Module) -> int:
    """Count the parameters that train; a folded decoder keeps its source's, frozen, beside."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@contextmanager
def _kept_sets(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Collect every gate's kept neurons, (1, neurons) a picture, while the block runs."""
    kept: dict[str, list[Tensor]] = {name: [] for name in gates(model)}

    with observing(lambda seen: kept[seen.neurons.name].append(seen.selection.keep)):
        yield kept
