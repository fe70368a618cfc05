"""A law of experts: whoever gets one of them gets what plain layers with its weights compute."""

from collections.abc import Iterator
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from dynprune.example import Example
from dynprune.gate.experts import CONVOLUTIONS, ExpertDepthwiseConv, ExpertLinear
from dynprune.gate.forms import forced_expert
from dynprune.gate.route import has_experts, routers
from dynprune.host.replacing import replace_everywhere
from dynprune.laws.subject import Case, NotTriedError, Subject

__all__ = ["experts_are_plain"]


def experts_are_plain(subject: Subject) -> Iterator[Case]:
    """With one expert for every input, a model gives what it gives with plain layers."""
    if not has_experts(subject.model):
        raise NotTriedError("the model has no experts")
    most = max(len(router.weight) for router in routers(subject.model).values())
    for m in range(most):
        plain = _plain(subject, m)
        for number, call in enumerate((*subject.calls, subject.batch), 1):
            found, wanted = partial(_forced, subject, call, m), partial(subject.run, call, plain)
            yield Case(f"expert {m + 1}, call {number}", found, wanted, own=True)


def _forced(subject: Subject, call: Example, m: int) -> list[Tensor]:
    with forced_expert(subject.model, m):
        return subject.run(call)


def _plain(subject: Subject, m: int) -> nn.Module:
    model = subject.copy()
    new: dict[nn.Module, nn.Module] = {
        layer: _One(layer, min(m, len(layer.weight) - 1))
        for layer in model.modules()
        if isinstance(layer, ExpertLinear | ExpertDepthwiseConv)
    }
    replace_everywhere(model, new)
    return model


class _One(nn.Module):
    """One expert's part of a layer."""

    def __init__(self, layer: ExpertLinear | ExpertDepthwiseConv, m: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach()[m].clone())
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach()[m].clone())
        self.of = (layer,)  # a tuple: it is no child

    def forward(self, x: Tensor) -> Tensor:
        """Compute as a plain layer."""
        layer = self.of[0]
        if isinstance(layer, ExpertDepthwiseConv):
            convolve, groups = CONVOLUTIONS[x.dim() - 2], len(self.weight)
            stride, padding, dilation = layer.stride, layer.padding, layer.dilation
            return convolve(x, self.weight, self.bias, stride, padding, dilation, groups)
        if layer.pointwise:
            return F.linear(x.movedim(1, -1), self.weight, self.bias).movedim(-1, 1)
        return F.linear(x, self.weight, self.bias)
