"""Apply lossless rewrites by name, rebuild them from their records, and take them back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.rewrite.attention.unpack import (
    UNPACK_ATTENTION,
    pack_attention,
    unpack_again,
    unpack_attention,
)
from dynprune.rewrite.decoder.fold import FOLD_DECODER, fold_decoders, refold, unfold_decoders
from dynprune.rewrite.memory import (
    CHANNELS_LAST,
    lay_out_again,
    lay_out_channels_last,
    lay_out_plain,
)
from dynprune.rewrite.narrow import FIX_NEURONS, PERMANENT, narrow_again
from dynprune.rewrite.record import Rewrite

__all__ = ["REWRITES", "reapply", "rewrite", "undo"]


@dataclass(frozen=True)
class _Kind:
    """The three things that can be done with one kind of rewrite.

    Attributes:
        apply: find, prove and make it in place; one record for each module looked at.
        again: check that a record fits, and give the function that makes it again in place.
        undo: take all of its kind back, in place.
    """

    apply: Callable[[nn.Module, Example], list[Rewrite]]
    again: Callable[[nn.Module, Rewrite], Callable[[], None]]
    undo: Callable[[nn.Module], None]


REWRITES: Mapping[str, _Kind] = {
    FOLD_DECODER: _Kind(fold_decoders, refold, unfold_decoders),
    CHANNELS_LAST: _Kind(lay_out_channels_last, lay_out_again, lay_out_plain),
    UNPACK_ATTENTION: _Kind(unpack_attention, unpack_again, pack_attention),
}
"""Every lossless rewrite by its name in a recipe."""


def rewrite(model: nn.Module, example: Example, names: Sequence[str]) -> list[Rewrite]:
    """Apply lossless rewrites in place; each is kept only if it proves itself.

    Args:
        model: any model; in its own mode and on its own device.
        example: a call of it.
        names: keys of `REWRITES`, in order.

    Returns:
        One record for every module rewritten or refused.

    Raises:
        UsageError: a name is unknown; the model is untouched.
    """
    _check_names(names)
    return [record for name in names for record in REWRITES[name].apply(model, example)]


def reapply(model: nn.Module, rewrites: Sequence[Rewrite]) -> nn.Module:
    """Rebuild rewritten forms in place from their records, with no tracing and no proof.

    Args:
        model: the dense model, with or without its weights.
        rewrites: what `rewrite` gave; refused ones are skipped.

    Returns:
        The model.

    Raises:
        UsageError: a record does not fit the model, which is then untouched.
    """
    made = [record for record in rewrites if record.reason is None]
    _check_names([record.name for record in made if record.name not in PERMANENT])
    # What is fixed last may lie in layers that other rewrites make.
    first = [record for record in made if record.name != FIX_NEURONS]
    last = [record for record in made if record.name == FIX_NEURONS]
    _again(model, first)
    try:
        return _again(model, last)
    except UsageError:
        undo(model)
        raise


def _again(model: nn.Module, records: Sequence[Rewrite]) -> nn.Module:
    """Check that all of some records fit, then make all of them again, in place."""
    steps = []
    for record in records:
        again = narrow_again if record.name in PERMANENT else REWRITES[record.name].again
        try:
            steps.append(again(model, record))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"the record of rewrite {record.name} does not fit {record.module!r}: {error}"
            ) from error
    for step in steps:
        step()
    return model


def undo(model: nn.Module) -> nn.Module:
    """Give the published form back, in place.

    Returns:
        The model; bit for bit the one that was rewritten where the rewritten weights were not
        trained since, else the same function as the trained one.
    """
    for kind in REWRITES.values():
        kind.undo(model)
    return model


def _check_names(names: Sequence[str]) -> None:
    if unknown := [name for name in names if name not in REWRITES]:
        raise UsageError(f"no rewrite is called {unknown[0]!r}; there are: {', '.join(REWRITES)}")
