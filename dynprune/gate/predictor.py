"""The predictor: from a pooled input to one number for each neuron."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynprune.errors import UsageError

__all__ = [
    "GatePredictor",
    "Pool",
    "PredictorFactory",
    "make_own_predictor",
    "pool_tokens",
    "pooled_width",
]

Pool = Literal["mean", "mean-std", "mean-max"]

PredictorFactory = Callable[[int, int], nn.Module]
"""From the width of the pooled input and the group's neurons to a module (B, width) -> (B, neurons)
with an integer ``macs``, its multiply-adds for one instance, and perhaps a method
``fit(summaries, targets)`` by which calibration starts it, see `dynprune.planning.fit`."""

INSERTION_STD = 1e-7  # of the last layer's weights: small enough that a fresh gate is the identity


def pooled_width(features: int, pool: Pool) -> int:
    """Return the width of what `pool_tokens` makes of ``features`` channels."""
    return features if pool == "mean" else 2 * features


def pool_tokens(tokens: Tensor, pool: Pool, real: Tensor | None = None) -> Tensor:
    """Summarise each instance's tokens, channel by channel.

    Args:
        tokens: the input of a producer.
        pool: ``mean`` as in DynaSegFormer (arXiv 2111.09499, Eq. 1); ``mean-std`` and
            ``mean-max`` put the standard deviation or the maximum beside it.
        real: which tokens count; padding does not. All of them where None.

    Shape:
        - tokens: (B, T, C)
        - real: (B, T), bool
        - Output: (B, C) or (B, 2C)
    """
    if real is None:
        mean = tokens.mean(1)
        if pool == "mean":
            return mean
        if pool == "mean-max":
            return torch.cat([mean, tokens.amax(1)], -1)
        square = tokens.square().mean(1)
    else:
        share = real.to(tokens.dtype)
        share = (share / share.sum(1, keepdim=True).clamp_min(1.0)).unsqueeze(1)  # (B, 1, T)
        mean = (share @ tokens).squeeze(1)
        if pool == "mean":
            return mean
        if pool == "mean-max":
            floor = torch.finfo(tokens.dtype).min
            top = tokens.masked_fill(~real.bool()[..., None], floor).amax(1)
            return torch.cat([mean, top], -1)
        square = (share @ tokens.square()).squeeze(1)
    deviation = (square - mean.square()).clamp_min(0.0)
    return torch.cat([mean, (deviation + 1e-6).sqrt()], -1)


class GatePredictor(nn.Module):
    r"""Two-layer MLP on a normalised summary of the input.

    .. math:: f = W_{up} \, \mathrm{ReLU}(W_{down} \, \mathrm{LayerNorm}(z) + b_{down}) + b_{up}

    Args:
        in_features: width of the summary z.
        neurons: neurons of the group.
        hidden: width of the hidden layer.
        device: of the parameters.
        dtype: of the parameters.

    Shape:
        - Input: (B, in_features)
        - Output: (B, neurons), near zero right after construction

    Source: DynaSegFormer, arXiv 2111.09499, Eq. 1 and 2.
    """

    def __init__(
        self,
        in_features: int,
        neurons: int,
        hidden: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_features, device=device, dtype=dtype)
        self.down = nn.Linear(in_features, hidden, device=device, dtype=dtype)
        self.up = nn.Linear(hidden, neurons, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as (almost) the zero function, so that insertion changes nothing, in place."""
        self.norm.reset_parameters()
        self.down.reset_parameters()
        nn.init.normal_(self.up.weight, std=INSERTION_STD)
        nn.init.zeros_(self.up.bias)

    def forward(self, summary: Tensor) -> Tensor:
        """Return f for every instance."""
        return self.up(F.relu(self.down(self.norm(summary))))

    @property
    def macs(self) -> int:
        """Multiply-adds for one instance."""
        return self.down.weight.numel() + self.up.weight.numel()


def make_own_predictor(
    factory: PredictorFactory,
    features: int,
    neurons: int,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Make a predictor of the user's own, and check that it is one.

    Args:
        factory: makes it.
        features: width of the pooled input.
        neurons: of the group.
        device: of its parameters.
        dtype: of its parameters.

    Raises:
        UsageError: where it is no module, gives something else than a number for each neuron, or
            does not say what it costs.
    """
    made = factory(features, neurons)
    if not isinstance(made, nn.Module):
        raise UsageError(f"predictor gave a {type(made).__name__}; it must give an nn.Module")
    name = type(made).__name__
    if not isinstance(getattr(made, "macs", None), int):
        raise UsageError(
            f"predictor {name} does not say what it costs: give it an attribute macs, its "
            "multiply-adds for one instance"
        )
    made = made.to(device=device, dtype=dtype)
    training = made.training
    summaries = torch.zeros(2, features, device=device, dtype=dtype)
    with torch.no_grad():
        found = made.eval()(summaries)
    made.train(training)
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if shape != (2, neurons):
        raise UsageError(
            f"predictor {name} gave {shape} for (2, {features}) pooled inputs; a group of "
            f"{neurons} neurons needs (2, {neurons})"
        )
    return made
