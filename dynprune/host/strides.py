"""Change how a parameter lies in memory, and lay it out again as its owner had it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["laid_out", "owns_its_memory"]


def laid_out(tensor: Tensor, stride: Sequence[int]) -> Tensor:
    """Return the same values with these strides: the tensor itself where it has them."""
    if tensor.stride() == tuple(stride):
        return tensor
    new = torch.empty_strided(tensor.shape, tuple(stride), dtype=tensor.dtype, device=tensor.device)
    return new.copy_(tensor)


def owns_its_memory(parameter: nn.Parameter) -> bool:
    """Whether a parameter is all that lies in its memory, so that it may be moved elsewhere."""
    data = parameter.detach()
    return data.untyped_storage().nbytes() == data.numel() * data.element_size()
