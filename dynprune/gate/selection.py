"""What a gate chose for one call, and how scores become a choice."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dynprune.gate.config import Execution
from dynprune.gate.topr import keep_mask, top_r

__all__ = ["GateOutput", "Selection", "select", "threshold"]


@dataclass(frozen=True)
class GateOutput:
    """What a gate computes from an input, before anything is chosen.

    Attributes:
        scores: (B, neurons); the best are kept.
        factor: (B, neurons) value that each neuron carries where it is kept; None where it is 1.
    """

    scores: Tensor
    factor: Tensor | None


@dataclass(frozen=True)
class Selection:
    """What a gate chose for the inputs of one call.

    Attributes:
        index: (B, K) kept neurons, ascending; what compact execution gathers by.
        value: (B, K) factors of the kept neurons, or None where they are all 1.
        mask: (B, neurons) factor of every neuron, 0 where skipped, or None outside masked
            execution. It carries the gradient.
        mean: (neurons,) value that replaces a skipped neuron, or None where that is zero.
        neurons: of the group.
        execution: how the layers of the group run in this call.
        order: (n,) that brings tokens of one expert together, where each of them chose one; None
            where instances chose, or single neurons.
    """

    index: Tensor
    value: Tensor | None
    mask: Tensor | None
    mean: Tensor | None
    neurons: int
    execution: Execution
    order: Tensor | None = None

    @property
    def keep(self) -> Tensor:
        """(B, neurons) ones at the kept neurons, zeros elsewhere, without a gradient."""
        like = self.mask if self.mask is not None else self.value
        return keep_mask(self.index, self.neurons, torch.float32 if like is None else like.dtype)

    @property
    def batch(self) -> int:
        """Instances of the call."""
        return self.index.shape[0]


def select(
    output: GateOutput,
    kept: int,
    segments: int,
    *,
    mean: Tensor | None,
    execution: Execution,
) -> Selection:
    r"""Keep the best ``kept`` neurons of every segment, for each instance its own.

    .. math:: M_j = g_j \, [\, j \in \mathrm{Top}_r(s) \,]

    Args:
        output: scores s and values g.
        kept: neurons kept in each segment.
        segments: equal parts that each keep ``kept`` neurons (attention heads).
        mean: (neurons,) value that replaces skipped neurons.
        execution: how the group's layers run.

    Source: DynaSegFormer, arXiv 2111.09499, Eq. 3.
    """
    index = top_r(output.scores, kept, segments)
    neurons = output.scores.shape[1]
    mask = value = None
    if execution == "masked":
        mask = _mask(output, index, kept, segments)
    elif output.factor is not None:
        value = output.factor.gather(1, index)
    return Selection(index, value, mask, mean, neurons, execution)


def threshold(scores: Tensor, kept: int, segments: int) -> Tensor:
    """Return the least kept score of each neuron's segment, (B, neurons), without gradient."""
    parts = scores.detach().unflatten(1, (segments, -1))
    least = parts.topk(kept, dim=-1, sorted=True).values[..., -1:]
    return least.expand_as(parts).flatten(1)


def _mask(output: GateOutput, index: Tensor, kept: int, segments: int) -> Tensor:
    scores = output.scores
    hard = keep_mask(index, scores.shape[1], scores.dtype)
    if output.factor is not None:
        return hard * output.factor
    if not scores.requires_grad:
        return hard
    soft = torch.sigmoid(scores - threshold(scores, kept, segments))
    return hard + soft - soft.detach()
