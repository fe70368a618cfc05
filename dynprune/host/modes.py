"""Put a model into the state in which it is looked at, and back."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from dynprune.host.fused_paths import without_fused_paths
from dynprune.host.trial import Snapshot, trial

__all__ = ["at_inference", "evaluating"]


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
def at_inference(model: nn.Module) -> Iterator[Snapshot]:
    """Run the body on trial: in eval mode, without gradients and without torch's fused fast paths.

    What the model's own code changes of itself and of chance is put back at the end.

    Yields:
        The state at the start, in eval mode: `Snapshot.put_back` before another run lets that one
        start from it too.
    """
    with trial(model), evaluating(model), without_fused_paths(), torch.no_grad():
        yield Snapshot(model)
