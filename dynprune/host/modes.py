"""Put a model into the state in which it is looked at, and back."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["at_inference", "evaluating", "keeping_buffers"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode, in place, and each back in its own mode afterwards.

    Modes are set by `nn.Module.train`, parents first, since modules may act on it; a model may hold
    frozen parts in eval mode, so each module has its own.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            if module.training != training:
                module.train(training)


@contextmanager
def at_inference(model: nn.Module) -> Iterator[None]:
    """Run the body in eval mode, without gradients and without torch's fused fast paths."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    with evaluating(model):
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            with torch.no_grad():
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fastpath)


@contextmanager
def keeping_buffers(model: nn.Module) -> Iterator[None]:
    """Give every buffer the value back, in place, that it had before: models may count calls."""
    before = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in before:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
                if name in module._buffers:
                    module._buffers[name] = buffer
