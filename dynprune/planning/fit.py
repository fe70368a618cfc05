"""Fit a gate's predictor in closed form: reduced-rank ridge regression on pooled inputs."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dynprune.gate.predictor import GatePredictor

__all__ = ["fit_predictor"]

RIDGES = torch.logspace(-3, 3, 13, dtype=torch.float64)  # over the mean of the Gram diagonal


def fit_predictor(predictor: nn.Module, summaries: Tensor, targets: Tensor) -> float:
    """Make the predictor give ``targets`` for ``summaries``, as far as they generalise, in place.

    The best linear map under a ridge chosen by leave-one-out error is cut to half the predictor's
    hidden width; a rank needs two hidden units, since ``relu(v) - relu(-v) = v``. Where leaving
    one out shows no gain over the mean, the predictor becomes the constant mean.

    A predictor of the user's own is fitted by its own ``fit(summaries, targets)``, which returns
    the share that it explains, and starts as it was made where it has none.

    Args:
        predictor: to be fitted.
        summaries: pooled inputs, one a row.
        targets: wanted outputs, likewise.

    Shape:
        - summaries: (n, features)
        - targets: (n, neurons)

    Returns:
        Share of the targets' variance that is explained, leaving one out; at most 1, and 0 where
        the mean was taken.

    Source: leave-one-out by the hat matrix, Hastie et al., The Elements of Statistical Learning,
    Eq. 7.52; reduced rank, Izenman 1975.
    """
    if not isinstance(predictor, GatePredictor):
        fit: Callable[[Tensor, Tensor], float] | None = getattr(predictor, "fit", None)
        return 0.0 if fit is None else float(fit(summaries, targets))
    with torch.no_grad():
        z = predictor.norm(summaries).double()
        t = targets.double()
        center, intercept = z.mean(0), t.mean(0)
        z, t = z - center, t - intercept
        count = len(z)
        gram = z @ z.t()
        scale = gram.diagonal().mean().clamp_min(1e-12)
        spread = (t * count / (count - 1)).square().sum()
        best, gained = None, 0.0
        for ridge in (RIDGES * scale).tolist():
            inverse = torch.linalg.inv(gram + ridge * torch.eye(count, dtype=gram.dtype))
            hat = gram @ inverse + 1.0 / count
            left = (t - gram @ inverse @ t) / (1.0 - hat.diagonal()).clamp_min(1e-6)[:, None]
            gain = 1.0 - float(left.square().sum() / spread) if spread > 0 else 0.0
            if gain > gained:
                best, gained = inverse, gain
        predictor.up.weight.zero_()
        predictor.up.bias.copy_(intercept)
        if best is None:
            return 0.0
        slope = z.t() @ best @ t  # (features, neurons)
        rank = min(predictor.down.out_features // 2, count - 1)
        directions = torch.linalg.svd(z @ slope, full_matrices=False).Vh[:rank]  # (rank, neurons)
        down = (slope @ directions.t()).t()  # (rank, features)
        balance = down.norm(dim=1, keepdim=True).clamp_min(1e-12).sqrt()
        down, up = down / balance, directions.t() * balance.t()
        offset = -down @ center
        predictor.down.weight[: 2 * rank] = torch.cat([down, -down]).to(predictor.down.weight)
        predictor.down.bias[: 2 * rank] = torch.cat([offset, -offset]).to(predictor.down.bias)
        predictor.up.weight[:, : 2 * rank] = torch.cat([up, -up], 1).to(predictor.up.weight)
        return gained
