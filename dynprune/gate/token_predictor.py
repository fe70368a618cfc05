"""Predictors of a token: which of its neurons will matter, from the token itself."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynprune.gate.predictor import INSERTION_STD

__all__ = [
    "ACTIVATIONS",
    "LowRankPredictor",
    "PreactivationPredictor",
    "ProjectionPredictor",
    "TokenPredictor",
]


def _relu_squared(x: Tensor) -> Tensor:
    return F.relu(x).square()


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "relu_squared": _relu_squared,
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
}
"""What a preactivation, or a gate projection before it multiplies its neurons, may pass through."""


class LowRankPredictor(nn.Module):
    r"""A linear map of a token, of low rank.

    .. math:: f = W_{up} W_{down} x + b

    Args:
        in_features: width of a token.
        neurons: neurons of the group.
        rank: of the map.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        - Input: (N, in_features) tokens
        - Output: (N, neurons), near zero right after construction
    """

    def __init__(
        self,
        in_features: int,
        neurons: int,
        rank: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.down = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.up = nn.Linear(rank, neurons, device=device, dtype=dtype)
        nn.init.normal_(self.up.weight, std=INSERTION_STD)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return f for every token."""
        return self.up(self.down(tokens))

    @property
    def macs(self) -> int:
        """Multiply-adds for one token."""
        return self.down.weight.numel() + self.up.weight.numel()


class PreactivationPredictor(nn.Module):
    r"""How far a neuron a(y) will be from its mean, from an estimate of its preactivation y.

    .. math:: f = c \, \sqrt{(a(\hat y) - \mu)^2 + v}, \qquad \hat y = W_{up} W_{down} x + b

    A preactivation is linear in the token, so that its estimate of low rank loses little, and
    nothing at full rank; a linear map of the token to how large a neuron is never gets there.

    Args:
        in_features: width of a token.
        neurons: neurons of the group.
        rank: of the estimate.
        activation: a, a key of `ACTIVATIONS`.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        - Input: (N, in_features) tokens
        - Output: (N, neurons)

    Attributes:
        scale: (neurons,) c, norm of what reads the neuron.
        center: (neurons,) mu, its mean.
        spread: (neurons,) root of v, of what the estimate loses.
    """

    def __init__(
        self,
        in_features: int,
        neurons: int,
        rank: int,
        activation: str,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.activation = in_features, activation
        make = partial(LowRankPredictor, device=device, dtype=dtype)
        self.estimate = make(in_features, neurons, rank)
        self.scale = nn.Parameter(torch.ones(neurons, device=device, dtype=dtype))
        self.center = nn.Parameter(torch.zeros(neurons, device=device, dtype=dtype))
        self.spread = nn.Parameter(torch.ones(neurons, device=device, dtype=dtype))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return f for every token."""
        off = ACTIVATIONS[self.activation](self.estimate(tokens)) - self.center
        return self.scale * (off.square() + self.spread.square() + 1e-12).sqrt()

    @property
    def macs(self) -> int:
        """Multiply-adds for one token."""
        return self.estimate.macs

    def extra_repr(self) -> str:
        """Show the activation."""
        return self.activation


class ProjectionPredictor(nn.Module):
    r"""How large a gated neuron a(g) u will be, from its gate projection g, which is known.

    .. math:: f = c \, |a(g)| \, \sqrt{\hat u^2 + v}, \qquad \hat u = W_{up} W_{down} x + b

    with c the norm of what reads the neuron, u the other projection of the token, its estimate of
    low rank and v what that leaves over: the root mean square of the neuron as far as it is known.
    Without an estimate v is the mean of u squared, and is taken into c.

    Args:
        in_features: width of a token.
        neurons: neurons of the group.
        rank: of the estimate; 0 for none.
        activation: a, a key of `ACTIVATIONS`.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        - tokens: (N, in_features)
        - projection: (N, neurons), g
        - Output: (N, neurons)

    Source: the gate projection alone is that of CATS, arXiv 2404.08763.
    """

    def __init__(
        self,
        in_features: int,
        neurons: int,
        rank: int,
        activation: str,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.activation = in_features, activation
        self.scale = nn.Parameter(torch.ones(neurons, device=device, dtype=dtype))
        self.estimate: LowRankPredictor | None = None
        if rank:
            make = partial(LowRankPredictor, device=device, dtype=dtype)
            self.estimate = make(in_features, neurons, rank)
            self.spread = nn.Parameter(torch.ones(neurons, device=device, dtype=dtype))

    def forward(self, tokens: Tensor, projection: Tensor) -> Tensor:
        """Return f for every token."""
        size = ACTIVATIONS[self.activation](projection).abs() * self.scale
        if self.estimate is None:
            return size
        return size * (self.estimate(tokens).square() + self.spread.square() + 1e-12).sqrt()

    @property
    def macs(self) -> int:
        """Multiply-adds for one token, beside the projection that is computed anyway."""
        return 0 if self.estimate is None else self.estimate.macs

    def extra_repr(self) -> str:
        """Show the activation."""
        return self.activation


TokenPredictor = LowRankPredictor | PreactivationPredictor | ProjectionPredictor
"""Any predictor of tokens."""
