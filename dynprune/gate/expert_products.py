"""Products of instances, or of tokens, by the weight of the expert that each of them got."""

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
        y = sorted_product(flat, weight, ends_of(expert, len(weight)) * count)
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
    if torch.compiler.is_compiling() or is_grouped(near, weight):
        y = sorted_product(near, weight, ends_of(expert, len(weight)))
        if bias is not None:
            y = y + bias.index_select(0, expert.index_select(0, order)).to(y.dtype)
    else:
        counts = torch.bincount(expert, minlength=len(weight)).tolist()
        parts = [
            F.linear(part, weight[m], None if bias is None else bias[m])
            for m, part in enumerate(near.split(counts))
            if len(part)
        ]
        y = torch.cat(parts) if parts else near.new_zeros(0, weight.shape[1])
    return torch.empty_like(y).index_copy(0, order, y)


def sorted_product(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Multiply rows that are sorted by expert, without a copy of a weight.

    Args:
        rows: (n, in).
        weight: (M, out, in).
        ends: (M,) rows of each expert and those before it.

    Shape:
        Output: (n, out)
    """
    # torch names its grouped product so until it is stable
    return torch._grouped_mm(rows, weight.transpose(1, 2), offs=ends.to(torch.int32))


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


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator] # torch's
def _has_grouped_product() -> bool:
    """Whether this card multiplies groups without asking the processor for their bounds."""
    return hasattr(torch, "_grouped_mm") and torch.cuda.get_device_capability() >= (9, 0)
