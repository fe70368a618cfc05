"""Put a module into a model wherever another one stands."""

from torch import nn

__all__ = ["replace_everywhere"]


def replace_everywhere(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` at every place of ``model`` where ``old`` stands, in place.

    A shared module has several parents. Where ``new`` holds ``old`` itself, it keeps it.
    """
    for parent in list(model.modules()):
        if parent is new:
            continue
        for name, child in list(parent._modules.items()):  # named_children skips repeats
            if child is old:
                setattr(parent, name, new)
