"""An exponential moving average of a model's weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["MovingAverage", "effective_decay"]


def effective_decay(decay: float, step: int) -> float:
    r"""Return the decay of a step: :math:`\min(d, (1 + t) / (10 + t))`.

    Early on the average follows the weights closely, so that it does not remember the start.
    """
    return min(decay, (1 + step) / (10 + step))


class MovingAverage:
    r"""The average :math:`a \leftarrow d a + (1 - d) w` of parameters and buffers.

    Integers (BatchNorm's count of batches) are copied.

    Args:
        model: whose weights it starts from and follows.
        decay: the largest d, see :func:`effective_decay`.

    Attributes:
        tensors: the averages, by the names of the model's state.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.decay = decay
        self.tensors = {name: value.detach().clone() for name, value in _state(model).items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the weights after ``step`` steps, in place."""
        weight = 1.0 - effective_decay(self.decay, step)
        for name, value in _state(self.model).items():
            if value.is_floating_point():
                self.tensors[name].lerp_(value, weight)
            else:
                self.tensors[name].copy_(value)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back saved averages, in place."""
        for name, average in self.tensors.items():
            average.copy_(tensors[name])

    def put_into_model(self) -> None:
        """Set the model's weights to the averages, in place."""
        _copy(self.tensors, _state(self.model))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model hold the averages for a while."""
        own = {name: value.detach().clone() for name, value in _state(self.model).items()}
        self.put_into_model()
        try:
            yield
        finally:
            _copy(own, _state(self.model))


def _state(model: nn.Module) -> dict[str, Tensor]:
    return model.state_dict(keep_vars=False)


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], destination: Mapping[str, Tensor]) -> None:
    for name, value in destination.items():
        value.copy_(source[name])
