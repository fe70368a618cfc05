"""Experts of a hidden layer: a few neuron sets, each with a consumer of its own.

Every input instance, or every token, computes one of them. Weights of an expert are contiguous and
constant, so that nothing is gathered neuron by neuron and shapes never depend on the input.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from dynprune.errors import UsageError
from dynprune.gate.call import GatedNeurons
from dynprune.gate.expert_products import instance_product, one_of, token_product
from dynprune.gate.instances import from_instances, to_instances
from dynprune.gate.layout import lend_attributes
from dynprune.gate.router import ExpertRouter
from dynprune.gate.selection import Selection

__all__ = ["ExpertDepthwiseConv", "ExpertLinear"]

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class ExpertLinear(nn.Module):
    r"""A linear or 1x1 convolution with one weight for each expert.

    .. math:: Y_b = (f_b X_b) W_{m(b)}^T + b_{m(b)}

    with m(b) the expert that the group's router chose for instance or token b. The factor f is 1;
    it is there for layers without a router, the consumers, while a model is trained, and brings the
    router its gradient.

    Args:
        weight: (M, out, in) of all experts.
        bias: (M, out), or None.
        members: the group's neurons; its layers find the router's choice by them.
        pointwise: whether channels are axis 1, as in convolutions.
        router: chooses for every input, where this layer is the first of its group.
        scaled: whether the factor multiplies here: at every consumer.

    Shape:
        - Input: (..., in), or (B, in, ...) where ``pointwise``
        - Output: the same with ``out`` channels
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        members: GatedNeurons,
        pointwise: bool = False,
        router: ExpertRouter | None = None,
        scaled: bool = False,
    ) -> None:
        super().__init__()
        if weight.dim() != 3 or (bias is not None and bias.shape != weight.shape[:2]):
            raise UsageError(f"expert weights are (M, out, in), got {tuple(weight.shape)}")
        self.weight = nn.Parameter(weight.contiguous())
        self.bias = None if bias is None else nn.Parameter(bias.contiguous())
        self.router = router
        self.members = members
        self.pointwise, self.scaled = pointwise, scaled

    def forward(self, x: Tensor) -> Tensor:
        """Compute every instance, or token, by its expert."""
        if self.pointwise:
            x = x.movedim(1, -1)
        layout = self.members.layout
        call = self.members.scope.current(trained=self.training or torch.is_grad_enabled())
        if self.router is None:
            selection = call.selection(self.members)
        else:
            count = call.instances if layout.folded else x.shape[layout.axis]
            selection = self.router(to_instances(x, count, layout), call, x)
        if selection.order is None:
            tokens = to_instances(x, selection.batch, layout)
            y = instance_product(self._scaled(tokens, selection), *self._of(selection))
        else:
            tokens = to_instances(x, x.shape[layout.axis], layout)
            rows = self._scaled(tokens.flatten(0, 1), selection)
            weight, bias, expert = self._of(selection)
            y = token_product(rows, weight, bias, expert, selection.order)
            y = y.view(*tokens.shape[:2], y.shape[-1])
        y = from_instances(y, x, layout)
        return y.movedim(-1, 1) if self.pointwise else y

    def _of(self, selection: Selection) -> tuple[Tensor, Tensor | None, Tensor]:
        return self.weight, self.bias, selection.index[:, 0]

    def _scaled(self, rows: Tensor, selection: Selection) -> Tensor:
        if not self.scaled or selection.value is None:
            return rows
        factor = selection.value.to(rows.dtype)
        return rows * factor.view(-1, *[1] * (rows.dim() - 1))

    def extra_repr(self) -> str:
        """Show the sizes."""
        experts, out, width = self.weight.shape
        return f"experts={experts}, in_features={width}, out_features={out}"


class ExpertDepthwiseConv(nn.Module):
    """A depthwise convolution with the filters of each expert's neurons.

    Args:
        source: the dense one, of which stride, padding and dilation are kept.
        index: (M, K) neurons of each expert.
        members: the group's neurons.

    Shape:
        (B, K, ...) in and out.
    """

    def __init__(self, source: _ConvNd, index: Tensor, *, members: GatedNeurons) -> None:
        super().__init__()
        index = index.to(source.weight.device)
        self.weight = nn.Parameter(source.weight.detach()[index])  # (M, K, 1, ...)
        self.bias = None if source.bias is None else nn.Parameter(source.bias.detach()[index])
        self.stride, self.padding, self.dilation = source.stride, source.padding, source.dilation
        self.members = members
        lend_attributes(source, self)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve every instance with its expert's filters."""
        call = self.members.scope.current(trained=self.training or torch.is_grad_enabled())
        expert = call.selection(self.members).index[:, 0]
        batch, kept = x.shape[:2]
        convolve = CONVOLUTIONS[x.dim() - 2]
        if batch == 1:
            weight = one_of(self.weight, expert)
            bias = None if self.bias is None else one_of(self.bias, expert)
            return convolve(x, weight, bias, self.stride, self.padding, self.dilation, kept)
        weight = self.weight.index_select(0, expert).flatten(0, 1)
        bias = None if self.bias is None else self.bias.index_select(0, expert).flatten()
        flat = x.reshape(1, batch * kept, *x.shape[2:])
        y = convolve(flat, weight, bias, self.stride, self.padding, self.dilation, batch * kept)
        return y.view(batch, kept, *y.shape[2:])

    def extra_repr(self) -> str:
        """Show the sizes."""
        experts, kept = self.weight.shape[:2]
        return f"experts={experts}, channels={kept}"
