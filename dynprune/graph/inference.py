"""Put a model into the state in which it is looked at, and back."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["at_inference"]


@contextmanager
def at_inference(model: nn.Module) -> Iterator[None]:
    """Run the body with every module in eval mode, without gradients or fused fast paths.

    Training flags are put back one by one, since a model may hold frozen parts in eval mode.
    """
    flags = [(module, module.training) for module in model.modules()]
    fastpath = torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for module, training in flags:
            module.training = training
