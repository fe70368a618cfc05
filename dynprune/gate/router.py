"""The router of a group's experts: which of them every input, or every token, is computed by."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynprune.gate.call import (
    Call,
    GatedNeurons,
    Observation,
    forced_output,
    is_observed,
    tell,
)
from dynprune.gate.predictor import pool_tokens
from dynprune.gate.selection import GateOutput, Selection

__all__ = ["ExpertRouter", "Grain"]

Grain = Literal["instance", "token"]
"""What chooses: every input instance as a whole, or every token for itself."""


class ExpertRouter(nn.Module):
    r"""Choose one of M experts by the mean of an instance's tokens, or by each token.

    .. math:: m = \arg\max_m \; (w_m \cdot \bar x + c_m)

    A nearest centre is such a choice: w is the centre and c minus half of its squared norm, in
    whatever scale the distance is measured. In training the chosen expert's neurons are multiplied
    by its probability over itself, which is 1 and has the probability's gradient, so that the task
    teaches the router; see `ExpertLinear`.

    Args:
        members: the group's neurons, as its layers know them.
        features: width C of a token.
        experts: M.
        grain: what chooses.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        - Input: (B, T, C)
        - Output: a selection whose index is (B, 1), or (B * T, 1) where tokens choose
    """

    def __init__(
        self,
        members: GatedNeurons,
        features: int,
        experts: int,
        *,
        grain: Grain = "instance",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.members, self.grain = members, grain
        self.weight = nn.Parameter(torch.zeros(experts, features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(experts, device=device, dtype=dtype))

    def forward(self, tokens: Tensor, call: Call, source: Tensor | None = None) -> Selection:
        """Choose for the input that a producer is about to read, and tell the call.

        Args:
            tokens: (B, T, C) input of the producer.
            call: that runs; the choice is put into it.
            source: what the producer got; the tokens themselves where None.
        """
        by_token = self.grain == "token"
        real = None if by_token else call.real(tokens, source)
        rows = tokens.flatten(0, 1) if by_token else self.pooled(tokens, real)
        output = forced_output(self.members, rows.shape[0])
        scores = self.scores(rows) if output is None else output.scores
        expert = scores.argmax(-1)
        factor = None
        if self.training and scores.requires_grad:
            likely = scores.softmax(-1).gather(1, expert[:, None])
            factor = likely / likely.detach()
        order = order_by(expert) if by_token else None
        experts = self.weight.shape[0]
        selection = Selection(expert[:, None], factor, None, None, experts, "compact", order)
        call.selections[self.members] = selection
        if is_observed():
            tell(Observation(self.members, tokens, real, GateOutput(scores, None), selection))
        return selection

    def pooled(self, tokens: Tensor, real: Tensor | None = None) -> Tensor:
        """Return the mean (B, C) of each instance's tokens, of which those in ``real`` count."""
        if real is None:
            return tokens.mean(1, dtype=self.weight.dtype)
        return pool_tokens(tokens.to(self.weight.dtype), "mean", real)

    def scores(self, rows: Tensor) -> Tensor:
        """Return how well each expert suits pooled inputs or tokens: (n, C) to (n, M)."""
        return F.linear(rows.to(self.weight.dtype), self.weight, self.bias)

    @property
    def macs(self) -> int:
        """Multiply-adds for one instance, or for one token where tokens choose."""
        return self.weight.numel()

    def extra_repr(self) -> str:
        """Show the sizes and the grain."""
        experts, features = self.weight.shape
        return f"{features} to {experts} experts, by {self.grain}"


def order_by(expert: Tensor) -> Tensor:
    """Return the order (n,) that brings rows of one expert together, each expert's as they were."""
    count = expert.shape[0]
    place = torch.arange(count, device=expert.device)
    return (expert * count + place).argsort()
