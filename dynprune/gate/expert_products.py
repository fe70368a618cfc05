"""Products of instances, or of tokens, by the weight of the expert that each of them got."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["instance_product", "is_grouped", "one_of", "sorted_product", "token_product"]


def instance_product(tokens: Tensor, weight: Tensor, bias: Tensor | None, expert: Tensor) -> Tensor:
    """Multiply every instance by its expert's weight.

    Args:
        tokens: (B, T, in).
        weight: (M, out, in).
        bias: (M, out), or None.
        expert: (B,) int64.

    Shape:
        Output: (B, T, out)
    """
    batch, count, width = tokens.shape
    if batch == 1:
        own = None if bias is None else one_of(bias, expert)
        return F.linear(tokens, one_of(weight, expert), own)
    if is_grouped(tokens, weight):
        order = expert.argsort(stable=True)
        flat = tokens.index_select(0, order).view(-1, width)
        y = _grouped(flat, weight, ends_of(expert, len(weight)) * count)
        y = y.view(batch, count, -1).index_select(0, order.argsort())
        return y if bias is None else y + bias.index_select(0, expert)[:, None]
    own_weight = weight.index_select(0, expert).transpose(1, 2)  # (B, in, out)
    if bias is None:
        return torch.bmm(tokens, own_weight)
    return torch.baddbmm(bias.index_select(0, expert)[:, None], tokens, own_weight)


def token_product(
    rows: Tensor, weight: Tensor, bias: Tensor | None, expert: Tensor, order: Tensor
) -> Tensor:
    """Multiply every token by its expert's weight: sorted by expert, one product each, put back.

    Args:
        rows: (n, in) tokens.
        weight: (M, out, in).
        bias: (M, out), or None.
        expert: (n,) int64, of each token.
        order: (n,) that sorts the tokens by expert.

    Shape:
        Output: (n, out)
    """
    if len(weight) == 1:
        return F.linear(rows, weight[0], None if bias is None else bias[0])
    near = rows.index_select(0, order)
    if is_grouped(near, weight):
        y = _grouped(near, weight, ends_of(expert, len(weight)))
        if bias is not None:
            y = y + bias.index_select(0, expert.index_select(0, order)).to(y.dtype)
    elif torch.compiler.is_compiling():
        if torch.is_autocast_enabled(near.device.type):
            dtype = torch.get_autocast_dtype(near.device.type)
            near, weight = near.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        y = sorted_product(near, weight, bias, ends_of(expert, len(weight)))
    else:
        y = _one_by_one(near, weight, bias, torch.bincount(expert, minlength=len(weight)).tolist())
    return torch.empty_like(y).index_copy(0, order, y)


def _grouped(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Multiply sorted rows without a copy of a weight, and without asking a device for bounds."""
    # torch names its grouped product so until it is stable
    return torch._grouped_mm(rows, weight.transpose(1, 2), offs=ends.to(torch.int32))


def _one_by_one(rows: Tensor, weight: Tensor, bias: Tensor | None, counts: list[int]) -> Tensor:
    """Multiply sorted rows, of which each expert has so many."""
    parts = [
        F.linear(part, weight[m], None if bias is None else bias[m])
        for m, part in enumerate(rows.split(counts))
        if len(part)
    ]
    return torch.cat(parts) if parts else rows.new_zeros(0, weight.shape[1])


@torch.library.custom_op("dynprune::sorted_product", mutates_args=())
def sorted_product(rows: Tensor, weight: Tensor, bias: Tensor | None, ends: Tensor) -> Tensor:
    """Multiply rows that are sorted by expert: one operator to whoever traces or compiles.

    Args:
        rows: (n, in).
        weight: (M, out, in).
        bias: (M, out), or None.
        ends: (M,) rows of each expert and those before it, together.

    Shape:
        Output: (n, out)
    """
    y = _one_by_one(rows, weight, bias, _counts(ends))
    return y.clone() if y is rows else y


@sorted_product.register_fake
def _(rows: Tensor, weight: Tensor, _bias: Tensor | None, _ends: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], weight.shape[1])


def _counts(ends: Tensor) -> list[int]:
    whole: list[int] = ends.tolist()
    return [end - start for start, end in zip([0, *whole], whole, strict=False)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 # torch's names
    rows, weight, bias, ends = inputs
    ctx.save_for_backward(rows, weight, ends)
    ctx.has_bias = bias is not None


def _backward(context: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
    rows, weight, ends = context.saved_tensors
    counts = _counts(ends)
    back = _one_by_one(grad, weight.transpose(1, 2), None, counts)
    pairs = list(zip(grad.split(counts), rows.split(counts), strict=True))
    weights = torch.stack([g.t() @ x for g, x in pairs])
    biases = torch.stack([g.sum(0) for g, _ in pairs]) if context.has_bias else None
    return back, weights, biases, None


sorted_product.register_autograd(_backward, setup_context=_keep)


def ends_of(expert: Tensor, experts: int) -> Tensor:
    """Return (M,): how many rows got each expert or one before it; never leaves the device."""
    every = torch.arange(experts, device=expert.device)
    return (expert[:, None] <= every).sum(0)


def one_of(stack: Tensor, expert: Tensor) -> Tensor:
    """Return the part of a stack that the only instance uses: a view where nobody traces.

    Args:
        stack: (M, ...).
        expert: (1,).
    """
    if expert.is_cpu and not torch.compiler.is_compiling():
        return stack[int(expert)]  # on a device that would wait for it
    return stack.index_select(0, expert)[0]


def is_grouped(rows: Tensor, weight: Tensor) -> bool:
    """Whether torch's grouped product runs fast on these: bfloat16 on a device, rows of 16 bytes.

    It asks the processor for no bounds there, so that nothing waits.
    """
    return (
        rows.is_cuda
        and rows.dtype == weight.dtype == torch.bfloat16
        and weight.shape[1] % 8 == weight.shape[2] % 8 == 0
        and _has_grouped_product()
    )


def _has_grouped_product() -> bool:
    """Whether this card multiplies groups without asking the processor for their bounds."""
    return hasattr(torch, "_grouped_mm") and torch.cuda.get_device_capability() >= (9, 0)


# What `torch.compiler.assume_constant_result` does, which would import the compiler for it.
_has_grouped_product._dynamo_marked_constant = True  # type: ignore[attr-defined] # of a function
