"""How far the neurons that are kept differ from image to image: the proof of a dynamic gate."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["DomainOverlap", "Overlap", "domains_of", "overlap_between", "overlap_of"]


@dataclass(frozen=True)
class Overlap:
    """Share of the neurons kept for one image that another image keeps too, mean over pairs.

    Attributes:
        all: of every two images; 1 where each keeps the same set, and the kept share of the
            neurons where sets are drawn at random.
        same_world: of two images of the same world; None where there are none.
        different_worlds: of two images of different worlds; None where there are none.
    """

    all: float
    same_world: float | None = None
    different_worlds: float | None = None

    @classmethod
    def mean(cls, overlaps: Sequence["Overlap"]) -> "Overlap | None":
        """Return the mean over groups that saw the same images; None where there are none."""
        if not overlaps:
            return None
        return cls(
            sum(o.all for o in overlaps) / len(overlaps),
            _mean([o.same_world for o in overlaps]),
            _mean([o.different_worlds for o in overlaps]),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class DomainOverlap:
    """Mean overlap, over groups and pairs of images, between two worlds or within one.

    Attributes:
        first: of the worlds.
        second: the other, or the same.
        overlap: None where there is no such pair.
    """

    first: str
    second: str
    overlap: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)


def domains_of(images: Iterable[Path]) -> tuple[str, ...]:
    """Tell images apart by what stands before the first ``_`` of their names.

    Returns:
        A world for every image; none at all unless there are several worlds, and one of them has
        several images.
    """
    worlds = tuple(path.stem.partition("_")[0] for path in images)
    counts = Counter(worlds)
    return worlds if len(counts) > 1 and max(counts.values()) > 1 else ()


def overlap_of(kept: Tensor, worlds: Sequence[str] = ()) -> Overlap | None:
    r"""Return the mean of :math:`|A \cap B| / |A|` over the pairs of kept sets.

    Args:
        kept: ones and zeros, a row an image; every row has the same number of ones.
        worlds: of the images; may be empty.

    Shape:
        - kept: (n, neurons)
    """
    if len(kept) < 2:
        return None
    shared = _shared(kept)
    other = ~torch.eye(len(kept), dtype=torch.bool)
    if not worlds:
        return Overlap(float(shared[other].mean()))
    same = _same(worlds)
    return Overlap(
        float(shared[other].mean()), _mean_of(shared[same & other]), _mean_of(shared[~same])
    )


def overlap_between(kept: Sequence[Tensor], worlds: Sequence[str]) -> tuple[DomainOverlap, ...]:
    """Return the mean overlap of every two worlds, and within each.

    Args:
        kept: of every group, see `overlap_of`.
        worlds: of the images; empty gives nothing.
    """
    if not worlds or not kept:
        return ()
    shared = torch.stack([_shared(group) for group in kept]).mean(0)
    other = ~torch.eye(len(worlds), dtype=torch.bool)
    names = list(dict.fromkeys(worlds))
    rows = {name: [i for i, world in enumerate(worlds) if world == name] for name in names}
    found = []
    for index, first in enumerate(names):
        for second in names[index:]:
            pairs = other[rows[first]][:, rows[second]]
            found.append(
                DomainOverlap(first, second, _mean_of(shared[rows[first]][:, rows[second]][pairs]))
            )
    return tuple(found)


def _shared(kept: Tensor) -> Tensor:
    """Return (n, n): the share of each image's kept neurons that each other image keeps."""
    kept = kept.detach().double().cpu()
    return (kept @ kept.t()) / kept.sum(1, keepdim=True)


def _same(worlds: Sequence[str]) -> Tensor:
    number = {world: index for index, world in enumerate(dict.fromkeys(worlds))}
    index = torch.tensor([number[world] for world in worlds])
    return index[:, None] == index[None, :]


def _mean_of(values: Tensor) -> float | None:
    return float(values.mean()) if len(values) else None


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None
