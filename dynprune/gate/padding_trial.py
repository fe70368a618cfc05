"""Try by running whether padding takes part in what gates choose by."""

import inspect
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynprune.example import Example
from dynprune.gate.call import Observation, recording
from dynprune.gate.predictor import pool_tokens
from dynprune.host.chance import seeded
from dynprune.host.failures import reraise_ours

__all__ = ["padding_faults"]

logger = logging.getLogger(__name__)

_ROUNDING = 1e-4  # of the largest pooled value; what padding does to a mean is far larger
_ENDS = ("key_padding_mask", "padding_mask", "attention_mask", "attn_mask", "mask")


@dataclass(frozen=True)
class _Padding:
    """A mask of a call, and the inputs whose positions it is about.

    Attributes:
        name: of the mask.
        mask: (B, T), or (B, H, W) for pictures.
        hidden: the value that marks padding.
        inputs: names of the arguments that have its positions.
    """

    name: str
    mask: Tensor
    hidden: float
    inputs: tuple[str, ...]


def padding_faults(model: nn.Module, example: Example) -> dict[str, str]:
    """Name the gates that padding would reach, each with the reason.

    The second half of the last instance is marked as padding, in every mask that the model takes,
    and what stands there is changed. Where the dense model hides padding from other tokens, some
    tokens at a gate's input change and others do not; what the gate pools must then stay.

    Args:
        model: with gates that skip nothing, in eval mode.
        example: a call with two instances.

    Returns:
        Group name -> why its gate cannot be.
    """
    names = tuple(inspect.signature(model.forward).parameters)
    given = {**dict(zip(names, example.args, strict=False)), **example.kwargs}
    faults: dict[str, str] = {}
    for padding in _paddings(names, given):
        try:
            first, second = (_observed(model, names, given, padding, seed) for seed in (None, 1))
        except Exception as error:  # the host may refuse this mask, in its own words
            reraise_ours(error)
            logger.debug("The model does not run with %s: %s", padding.name, error)
            continue
        for name, before in first.items():
            if name in second and _is_reached(before, second[name]):
                faults[name] = (
                    f"padding that {padding.name} marks is among its tokens, and no mask that its "
                    "modules receive says which they are"
                )
    return faults


def _paddings(names: tuple[str, ...], given: dict[str, Any]) -> Iterator[_Padding]:
    """Find the masks that a call has or may have, and what they are about."""
    for name in dict.fromkeys((*names, *given)):
        if "mask" not in name or "masked" in name:
            continue
        end = next((end for end in _ENDS if name.endswith(end)), None)
        if end is None:
            continue
        about = _inputs_of(name.removesuffix(end), given)
        mask = given.get(name)
        if mask is None and about and "attention" in end:
            first = given[about[0]]
            mask = torch.ones(first.shape[:2], dtype=torch.long, device=first.device)
        if not isinstance(mask, Tensor) or mask.dim() not in (2, 3) or mask.shape[0] < 2:
            continue
        inputs = tuple(n for n in about if _fits(given[n], mask))
        if inputs and mask.shape[-1] > 1:
            yield _Padding(name, mask, float("padding" in end), inputs)


def _inputs_of(prefix: str, given: dict[str, Any]) -> list[str]:
    """Name the arguments with positions that a mask of this prefix speaks of."""
    return [
        name
        for name, value in given.items()
        if isinstance(value, Tensor)
        and value.dim() > 1
        and "mask" not in name
        and (name.startswith(prefix) or not prefix)
        and (prefix or not name.startswith(("decoder_", "labels")))
    ]


def _fits(value: Tensor, mask: Tensor) -> bool:
    if mask.dim() == 2:
        return value.shape[:2] == mask.shape
    return value.dim() == 4 and value.shape[-2:] == mask.shape[-2:]


def _observed(
    model: nn.Module,
    names: tuple[str, ...],
    given: dict[str, Any],
    padding: _Padding,
    seed: int | None,
) -> dict[str, Observation]:
    """Run with the padding marked, and with other values there where there is a seed."""
    call = dict(given)
    half = padding.mask.shape[-1] // 2
    mask = padding.mask.clone()
    mask[-1, ..., half:] = padding.hidden
    call[padding.name] = mask
    if seed is not None:
        for name in padding.inputs:
            call[name] = _changed(call[name], padding.mask.dim(), half, seed)
    by_place = [n for n in names if n in given and n not in ("args", "kwargs")]
    with seeded(0), recording() as seen:
        model(**{n: call[n] for n in (*by_place, *(k for k in call if k not in by_place))})
    return {name: found[0] for name, found in seen.items() if len(found) == 1}


def _changed(value: Tensor, dims: int, half: int, seed: int) -> Tensor:
    """Return an input with other values where the last instance is padding."""
    value = value.clone()
    part = value[-1, half:] if dims == 2 else value[-1, ..., half:]
    generator = torch.Generator().manual_seed(seed)
    if value.is_floating_point():
        part += torch.randn(part.shape, generator=generator).to(part) * value.std().clamp_min(0.1)
    elif value.dtype != torch.bool:
        known = value.unique()
        order = torch.randint(1, max(2, len(known)), part.shape, generator=generator)
        place = torch.searchsorted(known, part.contiguous())
        part.copy_(known[(place + order.to(place)) % len(known)])
    return value


def _is_reached(before: Observation, after: Observation) -> bool:
    """Return whether some tokens alone changed, and what the gate pools changed with them."""
    if before.tokens.shape != after.tokens.shape or before.tokens.shape[1] < 2:
        return False
    scale = before.tokens.abs().max().clamp_min(1e-12)
    rows = (before.tokens - after.tokens).abs().amax(2)[-1] > _ROUNDING * scale
    if not bool(rows.any()) or bool(rows.all()):
        return False
    real = None if before.real is None else before.real[-1].bool()
    if real is not None and bool(real[0]) and bool(rows[real].all()):
        return False  # the dense model itself lets padding reach every token that counts
    one, two = (pool_tokens(seen.tokens, "mean", seen.real)[-1] for seen in (before, after))
    return bool((one - two).abs().max() > _ROUNDING * one.abs().max().clamp_min(1e-12))
