"""Give layers that lost neurons their dense sizes again, to count and time what was before."""

from collections.abc import Sequence

from torch import nn

from dynprune.rewrite.cuts import FIX_NEURONS, Cut, length, narrow_layers
from dynprune.rewrite.narrow import DROP_NEURONS
from dynprune.rewrite.record import Rewrite

__all__ = ["widen"]


def widen(model: nn.Module, records: Sequence[Rewrite]) -> nn.Module:
    """Return narrow layers their dense sizes, in place; weights that are lost repeat kept ones.

    What the model costs is then what its dense form costs; what it computes means nothing.

    Args:
        model: to which the records belong.
        records: of all its rewrites, in the order in which they were made.

    Returns:
        The model.
    """
    for record in reversed([record for record in records if record.reason is None]):
        if record.name == FIX_NEURONS:
            for x in record.details["layers"]:
                _widen(model, Cut(x["module"], x["side"], (), x["transposed"]), x["dense"])
            for x in record.details["heads"]:
                setattr(model.get_submodule(x["module"]), x["attribute"], x["dense"])
        elif record.name == DROP_NEURONS:
            for name, side in record.details["sides"]:
                cut = Cut(name, side, ())
                gone = len(record.details["dead"])
                _widen(model, cut, length(model.get_submodule(name), cut) + gone)
    return model


def _widen(model: nn.Module, cut: Cut, size: int) -> None:
    present = length(model.get_submodule(cut.module), cut)
    kept = tuple(position % present for position in range(size))
    narrow_layers(model, [Cut(cut.module, cut.side, kept, cut.transposed)])
