"""Masked execution: every neuron is computed, and skipped ones are replaced by their mean."""

from collections.abc import Sequence

from torch import Tensor

from dynprune.gate.binding import Bound, spread

__all__ = ["mask_inputs", "mask_outputs"]


def mask_inputs(x: Tensor, bounds: Sequence[Bound]) -> Tensor:
    r"""Return what a consumer multiplies by its weight: :math:`M \circ (Y - \mu)`.

    The consumer adds :math:`W_2 \mu` beside its bias, so that a skipped neuron counts as its mean.

    Args:
        x: input of the consumer.
        bounds: the gates whose neurons are its channels.

    Shape:
        - x, output: (B, T, channels)
    """
    size = x.shape[-1]
    for bound in bounds:
        mask, mean = bound.selection.mask, bound.selection.mean
        assert mask is not None
        if mean is not None:
            x = x - spread(mean[None], bound.index, size, 0.0)[:, None]
        x = x * spread(mask, bound.index, size, 1.0)[:, None]
    return x


def mask_outputs(y: Tensor, bounds: Sequence[Bound]) -> Tensor:
    """Return the output of a producer with skipped queries and keys at zero, bias included.

    The gate's value multiplies on one side of the product alone.

    Args:
        y: output of the producer.
        bounds: the gates whose neurons are its channels.

    Shape:
        - y, output: (B, T, channels)
    """
    size = y.shape[-1]
    for bound in bounds:
        mask = bound.selection.mask
        assert mask is not None
        keep = bound.selection.keep
        if bound.index is None:
            factor = mask if bound.carries_value else keep
        else:
            factor = spread(keep, bound.index, size, 1.0)
            if bound.carries_value:
                last = bound.index[:, -1].expand(mask.shape[0], -1)
                factor = factor.scatter(1, last, mask)
        y = y * factor[:, None]
    return y
