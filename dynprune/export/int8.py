"""An int8 form of a float32 file: calibrated, with fragile products left out as far as it takes."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from dynprune.errors import OutputError, UsageError
from dynprune.example import Example
from dynprune.export.quantiser import Quantiser, quantise
from dynprune.gate import gates

__all__ = ["Calibration", "Quantised", "calibrated_for", "quantised", "refuse_gathered"]

logger = logging.getLogger(__name__)

TOLERANCE = 0.5
"""Largest relative difference of an int8 file on calibration pictures: more is no rounding."""


@dataclass(frozen=True)
class Calibration:
    """What an int8 file is made with.

    Attributes:
        calls: inputs like those to come, which the ranges of activations are read from.
        score: how good a file is through its engine, larger is better; None where none asks.
        most_lost: how much of the score int8 may cost.
        quick: to time the file alone; its accuracy counts for nothing.
    """

    calls: Sequence[Example]
    score: Callable[[Path], float] | None = None
    most_lost: float | None = None
    quick: bool = False


@dataclass(frozen=True)
class Quantised:
    """How a file was quantised.

    Attributes:
        left_out: products that stay in float32.
        accuracy: ``fp32``, ``int8`` and ``lost`` of the score; None where none was asked for.
    """

    left_out: tuple[str, ...]
    accuracy: dict[str, float] | None


def refuse_gathered(model: nn.Module, engine: str) -> None:
    """Refuse a gated model, whose weights are gathered anew for every input.

    Raises:
        UsageError: it is gated.
    """
    if not gates(model):
        return
    raise UsageError(
        f"an int8 file of a model that gathers weights for every input is not possible in "
        f"{engine}: it quantises constant weights alone, and runs products with gathered ones in "
        "fp32. Fix the neurons (dynprune apply with --set apply.gate.choose=fixed), whose narrow "
        "layers run in int8, or ask for another --precision"
    )


def calibrated_for(
    calibration: Calibration | None, example: Example, *, fixed: bool
) -> Calibration:
    """Return a calibration whose calls a file takes.

    Args:
        calibration: as it was asked for.
        example: the call that the file is made for.
        fixed: whether it takes that size alone.

    Raises:
        UsageError: there are no calls.
    """
    if calibration is None or not calibration.calls:
        raise UsageError("int8 is calibrated on inputs, and there are none: add --data DIR")
    if not fixed:
        return calibration
    sized = [_sized(call, example) for call in calibration.calls]
    return Calibration(sized, calibration.score, calibration.most_lost, calibration.quick)


def quantised(
    source: Path,
    target: Path,
    products: Mapping[str, str],
    calibration: Calibration,
    quantiser: Quantiser,
    *,
    never: Sequence[str] = (),
) -> Quantised:
    """Write an int8 form of a file; the product that makes the output stays in float32.

    Where a bound on what it may cost is given and broken, the first and the last 1, 2, 4 and 8
    products are left out as well, until it holds: what reads pictures and what makes logits is the
    most fragile.

    Args:
        source: the float32 file.
        target: of the int8 file.
        products: of the source in their order, see `products_of`.
        calibration: see there.
        quantiser: whose.
        never: products that it must leave alone in any case.

    Raises:
        OutputError: the bound cannot be held.
    """
    before = None if calibration.score is None else calibration.score(source)
    tried = []
    for edges in _ladder([name for name in products if name not in never]):
        left_out = (*edges, *never)
        quantise(
            source,
            target,
            calibration.calls,
            quantiser,
            leave_out={name: products[name] for name in left_out},
            quick=calibration.quick,
        )
        if before is None or calibration.score is None:
            return Quantised(left_out, None)
        after = calibration.score(target)
        tried.append(f"{before - after:.4f} with {len(left_out)} products in fp32")
        logger.info("int8 costs %s.", tried[-1])
        if calibration.most_lost is None or before - after <= calibration.most_lost:
            return Quantised(left_out, {"fp32": before, "int8": after, "lost": before - after})
    raise OutputError(
        f"int8 costs more mIoU than --accuracy-drop {calibration.most_lost} allows "
        f"({'; '.join(tried)}), measured through the engine; nothing was written. Allow more, or "
        "calibrate on more pictures (--subset)"
    )


def _ladder(products: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield ever more of the first and the last products."""
    seen: set[tuple[str, ...]] = set()
    for first, last in ((0, 1), (1, 1), (2, 2), (4, 4), (8, 8)):
        edges = {*products[:first], *products[len(products) - last :]}
        chosen = tuple(name for name in products if name in edges)
        if chosen not in seen and len(chosen) < len(products):
            seen.add(chosen)
            yield chosen
    if not seen:
        yield ()


def _sized(call: Example, example: Example) -> Example:
    """Bring pictures to the size that a file takes."""
    tensors = [_resized(t, like) for t, like in zip(call.tensors, example.tensors, strict=True)]
    if all(a is b for a, b in zip(tensors, call.tensors, strict=True)):
        return call
    return Example(tuple(tensors))


def _resized(given: Tensor, like: Tensor) -> Tensor:
    if given.shape == like.shape or given.dim() != 4:
        return given
    sized = given
    if given.shape[-2:] != like.shape[-2:]:
        sized = F.interpolate(given, like.shape[-2:], mode="bilinear", align_corners=False)
    return sized.expand(like.shape[0], *sized.shape[1:]) if sized.shape[0] == 1 else sized
