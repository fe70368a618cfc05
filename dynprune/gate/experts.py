"""Experts of a hidden layer: a few neuron sets, each with a consumer of its own, and a router.

Every input instance computes one of them. Weights of an expert are contiguous and constant, so
that nothing is gathered neuron by neuron and shapes never depend on the input.
"""

import threading

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from dynprune.errors import GateError, UsageError
from dynprune.gate.instances import InstanceLayout, from_instances, to_instances
from dynprune.gate.layout import lend_attributes

__all__ = ["ExpertDepthwiseConv", "ExpertLinear", "ExpertRouter", "Routing", "grouped_product"]

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Routing(threading.local):
    """Which expert each instance of the running call got; one group's layers share it.

    Every thread has its own, so that calls of two threads never meet.

    Attributes:
        expert: (B,) int64; None before the producer has run.
    """

    expert: Tensor | None = None

    @property
    def chosen(self) -> Tensor:
        """The experts of the input that runs.

        Raises:
            GateError: the group's producer has not run yet.
        """
        if self.expert is None:
            raise GateError("An expert layer ran before the layer that routes. Call the model.")
        return self.expert

    def __reduce__(self) -> tuple[type["Routing"], tuple[()]]:
        """Return a copy nothing of the last call, whose tensors may not be copied."""
        return Routing, ()


class ExpertRouter(nn.Module):
    r"""Choose one of M experts by the mean of an instance's tokens.

    .. math:: m = \arg\max_m \; (w_m \cdot \bar x + c_m)

    A nearest centre is such a choice: w is the centre and c minus half of its squared norm, in
    whatever scale the distance is measured.

    Args:
        features: width C of a token.
        experts: M.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        - Input: (B, T, C)
        - Output: (B,), int64
    """

    def __init__(
        self,
        features: int,
        experts: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(experts, features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(experts, device=device, dtype=dtype))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the expert of every instance."""
        pooled = tokens.mean(1, dtype=self.weight.dtype)
        return F.linear(pooled, self.weight, self.bias).argmax(-1)

    @property
    def macs(self) -> int:
        """Multiply-adds for one instance."""
        return self.weight.numel()


class ExpertLinear(nn.Module):
    r"""A linear or 1x1 convolution with one weight for each expert.

    .. math:: Y_b = X_b W_{m(b)}^T + b_{m(b)}

    Args:
        weight: (M, out, in) of all experts.
        bias: (M, out), or None.
        routing: shared by the layers of the group.
        layout: where the batch is in the input.
        pointwise: whether channels are axis 1, as in convolutions.
        router: chooses for every input, where this layer is the first of its group.

    Shape:
        - Input: (..., in), or (B, in, ...) where ``pointwise``
        - Output: the same with ``out`` channels
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        routing: Routing,
        layout: InstanceLayout | None = None,
        pointwise: bool = False,
        router: ExpertRouter | None = None,
    ) -> None:
        super().__init__()
        if weight.dim() != 3 or (bias is not None and bias.shape != weight.shape[:2]):
            raise UsageError(f"expert weights are (M, out, in), got {tuple(weight.shape)}")
        self.weight = nn.Parameter(weight.contiguous())
        self.bias = None if bias is None else nn.Parameter(bias.contiguous())
        self.router = router
        self.layout = layout or InstanceLayout()
        self.pointwise = pointwise
        self._routing = (routing,)  # a tuple: it belongs to the group

    def forward(self, x: Tensor) -> Tensor:
        """Compute every instance by its expert."""
        if self.pointwise:
            x = x.movedim(1, -1)
        routing = self._routing[0]
        if self.router is None:
            tokens = to_instances(x, routing.chosen.shape[0], self.layout)
        else:
            tokens = to_instances(x, x.shape[self.layout.axis], self.layout)
            routing.expert = self.router(tokens)
        y = from_instances(self._product(tokens, routing.chosen), x, self.layout)
        return y.movedim(-1, 1) if self.pointwise else y

    def _product(self, tokens: Tensor, expert: Tensor) -> Tensor:
        if is_grouped(tokens, self.weight):
            return grouped_product(tokens, self.weight, self.bias, expert)
        if tokens.shape[0] == 1:
            weight = one_of(self.weight, expert)
            bias = None if self.bias is None else one_of(self.bias, expert)
            return F.linear(tokens, weight, bias)
        weight = self.weight.index_select(0, expert).transpose(1, 2)  # (B, in, out)
        if self.bias is None:
            return torch.bmm(tokens, weight)
        return torch.baddbmm(self.bias.index_select(0, expert)[:, None], tokens, weight)

    def extra_repr(self) -> str:
        """Show the sizes."""
        experts, out, width = self.weight.shape
        return f"experts={experts}, in_features={width}, out_features={out}"


class ExpertDepthwiseConv(nn.Module):
    """A depthwise convolution with the filters of each expert's neurons.

    Args:
        source: the dense one, of which stride, padding and dilation are kept.
        index: (M, K) neurons of each expert.
        routing: shared by the layers of the group.

    Shape:
        (B, K, ...) in and out.
    """

    def __init__(self, source: _ConvNd, index: Tensor, *, routing: Routing) -> None:
        super().__init__()
        index = index.to(source.weight.device)
        self.weight = nn.Parameter(source.weight.detach()[index])  # (M, K, 1, ...)
        self.bias = None if source.bias is None else nn.Parameter(source.bias.detach()[index])
        self.stride, self.padding, self.dilation = source.stride, source.padding, source.dilation
        self._routing = (routing,)
        lend_attributes(source, self)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve every instance with its expert's filters."""
        expert = self._routing[0].chosen
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


def one_of(stack: Tensor, expert: Tensor) -> Tensor:
    """Return the part of a stack that the only instance uses: a view where nobody traces.

    Args:
        stack: (M, ...).
        expert: (1,).
    """
    if expert.is_cpu and not torch.compiler.is_compiling():
        return stack[int(expert)]  # on a device that would wait for it
    return stack.index_select(0, expert)[0]


def is_grouped(tokens: Tensor, weight: Tensor) -> bool:
    """Whether torch's grouped product runs on these: bfloat16 on a device, rows of 16 bytes."""
    return (
        tokens.is_cuda
        and tokens.dtype == weight.dtype == torch.bfloat16
        and weight.shape[1] % 8 == weight.shape[2] % 8 == 0
        and _has_grouped_product()
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator] # torch's
def _has_grouped_product() -> bool:
    """Whether this card multiplies groups without asking the processor for their bounds."""
    return hasattr(torch, "_grouped_mm") and torch.cuda.get_device_capability() >= (9, 0)


def grouped_product(tokens: Tensor, weight: Tensor, bias: Tensor | None, expert: Tensor) -> Tensor:
    """Multiply every instance by its expert's weight without copying a weight.

    Instances are sorted by expert; one product of groups follows, whose bounds stay on the device.

    Args:
        tokens: (B, T, in).
        weight: (M, out, in).
        bias: (M, out), or None.
        expert: (B,).

    Shape:
        Output: (B, T, out)
    """
    batch, count, width = tokens.shape
    experts = torch.arange(weight.shape[0], device=expert.device)
    ends = (expert[:, None] <= experts).sum(0).mul(count).to(torch.int32)  # (M,)
    if batch == 1:
        # torch names its grouped product so until it is stable
        y = torch._grouped_mm(tokens[0].contiguous(), weight.transpose(1, 2), offs=ends)[None]
        return y if bias is None else y + bias.index_select(0, expert)[:, None]
    order = expert.argsort(stable=True)
    flat = tokens.index_select(0, order).view(-1, width)
    # likewise
    y = torch._grouped_mm(flat, weight.transpose(1, 2), offs=ends).view(batch, count, -1)
    y = y.index_select(0, order.argsort())
    return y if bias is None else y + bias.index_select(0, expert)[:, None]
