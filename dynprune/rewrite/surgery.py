"""Apply lossless rewrites by name, rebuild them from their records, and take them back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.rewrite.attention.unpack import (
    UNPACK_ATTENTION,
    unpack_again,
    unpack_attention,
)
from dynprune.rewrite.cuts import FIX_NEURONS, fix_again
from dynprune.rewrite.decoder.fold import FOLD_DECODER, fold_decoders, refold
from dynprune.rewrite.made import count_made, take_back
from dynprune.rewrite.memory import (
    CHANNELS_LAST,
    lay_out_again,
    lay_out_channels_last,
)
from dynprune.rewrite.narrow import DROP_NEURONS, narrow_again
from dynprune.rewrite.record import Rewrite

__all__ = ["REWRITES", "RewriteKind", "reapply", "rewrite", "undo"]


@dataclass(frozen=True)
class RewriteKind:
    """The two ways in which one kind of rewrite is made; each notes what takes it back.

    Attributes:
        apply: find, prove and make it in place; one record for each module looked at.
        again: check that a record fits, and give the function that makes it again in place.
    """

    apply: Callable[[nn.Module, Example], list[Rewrite]]
    again: Callable[[nn.Module, Rewrite], Callable[[], None]]


REWRITES: Mapping[str, RewriteKind] = {
    FOLD_DECODER: RewriteKind(fold_decoders, refold),
    CHANNELS_LAST: RewriteKind(lay_out_channels_last, lay_out_again),
    UNPACK_ATTENTION: RewriteKind(unpack_attention, unpack_again),
}
"""Every lossless rewrite by its name in a recipe."""

_FOR_GOOD: Mapping[str, Callable[[nn.Module, Rewrite], Callable[[], None]]] = {
    DROP_NEURONS: narrow_again,
    FIX_NEURONS: fix_again,
}
"""What makes the records of removed neurons again."""


def rewrite(
    model: nn.Module,
    example: Example,
    names: Sequence[str],
    *,
    kinds: Mapping[str, RewriteKind] = REWRITES,
) -> list[Rewrite]:
    """Apply lossless rewrites in place; each is kept only if it proves itself.

    Args:
        model: any model; in its own mode and on its own device.
        example: a call of it.
        names: keys of ``kinds``, in order.
        kinds: every rewrite by its name; a dict of `REWRITES` and one's own.

    Returns:
        One record for every module rewritten or refused.

    Raises:
        UsageError: a name is unknown; the model is untouched.
    """
    _check_names(names, kinds)
    return [record for name in names for record in kinds[name].apply(model, example)]


def reapply(
    model: nn.Module,
    rewrites: Sequence[Rewrite],
    *,
    kinds: Mapping[str, RewriteKind] = REWRITES,
) -> nn.Module:
    """Rebuild rewritten forms in place from their records, with no tracing and no proof.

    Args:
        model: the dense model, with or without its weights.
        rewrites: what `rewrite` returned; refused ones are skipped.
        kinds: every rewrite by its name, as `rewrite` had them.

    Returns:
        The model.

    Raises:
        UsageError: a record does not fit the model, which is then untouched.
    """
    made = [record for record in rewrites if record.reason is None]
    _check_names([record.name for record in made if record.name not in _FOR_GOOD], kinds)
    # What is fixed last may lie in layers that other rewrites make.
    first = [record for record in made if record.name != FIX_NEURONS]
    last = [record for record in made if record.name == FIX_NEURONS]
    before = count_made(model)
    _again(model, first, kinds)
    try:
        return _again(model, last, kinds)
    except UsageError:
        undo(model, before)
        raise


def _again(
    model: nn.Module, records: Sequence[Rewrite], kinds: Mapping[str, RewriteKind]
) -> nn.Module:
    """Check that all of some records fit, then make all of them again, in place."""
    steps = []
    for record in records:
        again = _FOR_GOOD.get(record.name) or kinds[record.name].again
        try:
            steps.append(again(model, record))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"the record of rewrite {record.name} does not fit {record.module!r}: {error}"
            ) from error
    for step in steps:
        step()
    return model


def undo(model: nn.Module, since: int = 0) -> nn.Module:
    """Take rewrites back, the latest first, in place; what nobody here changed is left alone.

    Args:
        model: any model.
        since: rewrites that stay, as `count_made` counted them.

    Returns:
        The model; bit for bit the one that was rewritten where the rewritten weights were not
        trained since, else the same function as the trained one.
    """
    take_back(model, since)
    return model


def _check_names(names: Sequence[str], kinds: Mapping[str, RewriteKind]) -> None:
    if unknown := [name for name in names if name not in kinds]:
        raise UsageError(f"no rewrite is called {unknown[0]!r}; there are: {', '.join(kinds)}")
