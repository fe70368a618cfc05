"""What takes each change of a model back, kept on the model in the order in which it was made."""

from collections.abc import Callable

from torch import nn

from dynprune.host.trial import OWN_MARK

__all__ = ["Undo", "count_made", "forget_undo", "note_undo", "take_back"]

Undo = Callable[[nn.Module], None]
"""Takes one change of a model back, in place. A partial of a function of a module, so that it is
copied with the model whose modules it holds."""

_ATTRIBUTE = f"{OWN_MARK}_made"


def note_undo(model: nn.Module, undo: Undo) -> None:
    """Note what takes a change back, before or as soon as it is made, in place."""
    vars(model).setdefault(_ATTRIBUTE, []).append(undo)


def count_made(model: nn.Module) -> int:
    """Return how many changes stand."""
    return len(vars(model).get(_ATTRIBUTE, ()))


def take_back(model: nn.Module, since: int = 0) -> None:
    """Take changes back, the latest first, until ``since`` of them stand, in place."""
    made: list[Undo] = vars(model).get(_ATTRIBUTE, [])
    while len(made) > since:
        made[-1](model)
        made.pop()
    if not made:
        vars(model).pop(_ATTRIBUTE, None)


def forget_undo(model: nn.Module, since: int) -> None:
    """Forget how all changes after the first ``since`` are taken back, in place."""
    made: list[Undo] = vars(model).get(_ATTRIBUTE, [])
    del made[since:]
