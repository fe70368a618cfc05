"""The feature vectors of any model's output, and how close those of two models are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.host.modes import at_inference
from dynprune.host.outputs import tensors_of
from dynprune.tasks.embedding import agreement
from dynprune.tasks.task import Progress, Scores

__all__ = ["WORDS", "Seen", "compare_vectors", "feature_vectors", "see_positions"]

_TOKENS, _MAPS = "last_hidden_state", "feature_maps"
WORDS = {
    "cosine": "cosine",
    "worst": "worst cosine",
    "neighbours": "nearest neighbour kept",
    "error": "relative error",
}


def feature_vectors(output: Any) -> Tensor:
    """Find the feature vectors in what a model returned: one a position.

    The tokens of ``last_hidden_state``; else the last of ``feature_maps``; else the first
    floating-point tensor. A map ``(B, C, H, W)`` becomes tokens, row by row.

    Shape:
        returns ``(B, N, C)``.

    Raises:
        UsageError: if there are none.

    Example:
        >>> feature_vectors(torch.zeros(2, 8, 3, 4)).shape
        torch.Size([2, 12, 8])
    """
    found = _named(output, _TOKENS)
    if not isinstance(found, Tensor):
        maps = _named(output, _MAPS)
        tensors = [t for t in tensors_of(output) if t.is_floating_point() and t.dim() >= 2]
        found = maps[-1] if maps else tensors[0] if tensors else None
    if not isinstance(found, Tensor) or found.dim() not in (2, 3, 4):
        raise UsageError(
            f"no features in the model's output of type {type(output).__name__}; return tokens "
            "(B, N, C), a map (B, C, H, W) or vectors (B, C)"
        )
    if found.dim() == 4:
        return found.flatten(2).transpose(1, 2)
    return found if found.dim() == 3 else found[:, None]


def _named(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


@dataclass(frozen=True)
class Seen:
    """What two models' vectors of one call have in common.

    Attributes:
        cosines: mean cosine over the positions of each instance, ``(B,)``.
        student: one vector an instance, of unit length, ``(B, C)``.
        teacher: likewise.
    """

    cosines: Tensor
    student: Tensor
    teacher: Tensor


def compare_vectors(
    student: nn.Module,
    dense: nn.Module,
    calls: Callable[[int], Example],
    count: int,
    see: Callable[[Example, Any, Any], Seen],
    *,
    progress: Progress | None = None,
) -> Scores:
    """Score how close a student is to its dense model, sample by sample.

    Args:
        student: the model that is scored.
        dense: what it is compared with, on the same device.
        calls: from an index to a call.
        count: calls.
        see: compares what the two returned for a call.
        progress: called with the calls done and all.
    """
    rows: list[Seen] = []
    with at_inference(student), at_inference(dense), torch.no_grad():
        for index in range(count):
            call = calls(index)
            seen = see(call, call.run(student), call.run(dense))
            rows.append(Seen(seen.cosines.cpu(), seen.student.cpu(), seen.teacher.cpu()))
            if progress is not None:
                progress(index + 1, count)
    cosines = torch.cat([row.cosines for row in rows])
    ours, theirs = (torch.cat([getattr(r, n) for r in rows]) for n in ("student", "teacher"))
    found = agreement(ours, theirs)
    figures = {
        "cosine": float(cosines.mean()),
        "worst": float(cosines.min()),
        "neighbours": found.neighbours,
    }
    return Scores(len(cosines), figures, WORDS)


def see_positions(_call: Example, student: Any, dense: Any) -> Seen:
    """Compare feature vectors position by position."""
    ours, theirs = feature_vectors(student).float(), feature_vectors(dense).float()
    if ours.shape != theirs.shape:
        raise UsageError(
            f"the model's features have the shape {tuple(ours.shape)}, those of the dense one "
            f"{tuple(theirs.shape)}; compare a model with the one that it came from"
        )
    return Seen(
        F.cosine_similarity(ours, theirs, dim=-1).mean(1),
        F.normalize(ours.mean(1), dim=-1),
        F.normalize(theirs.mean(1), dim=-1),
    )
