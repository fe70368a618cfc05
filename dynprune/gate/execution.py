"""Drive the gates of a model: how much they prune now, and how the model runs."""

from typing import Literal

from torch import nn

from dynprune.gate.inject import gates

__all__ = ["set_execution", "set_prune_ratio", "set_sparsity_progress"]


def set_prune_ratio(model: nn.Module, ratio: float) -> None:
    """Make every gate of the model skip this share of its neurons, in place."""
    for gate in gates(model).values():
        gate.set_prune_ratio(ratio)


def set_sparsity_progress(model: nn.Module, fraction: float) -> None:
    """Make every gate skip this fraction (0 to 1) of its own final prune ratio, in place."""
    for gate in gates(model).values():
        gate.set_prune_ratio(gate.final_ratio * min(1.0, max(0.0, fraction)))


def set_execution(model: nn.Module, execution: Literal["compact", "masked"]) -> None:
    """Choose how the model runs in eval mode, in place.

    Args:
        model: a gated model.
        execution: ``compact`` runs every group in the mode it was verified in (the default);
            ``masked`` computes everything and zeroes, as training always does.
    """
    for gate in gates(model).values():
        gate.requested = execution
    for gate in gates(model).values():
        gate.sync()
