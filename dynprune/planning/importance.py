"""What each neuron of a group is worth on each calibration input."""

import torch
from torch import Tensor

from dynprune.errors import UsageError
from dynprune.gate.neuron_gate import NeuronGate
from dynprune.measure.moments import NeuronMoments

__all__ = ["importance_of"]


def importance_of(gate: NeuronGate, moments: NeuronMoments) -> Tensor:
    """Return (n, neurons): the importance of a gate's neurons on each of n inputs.

    It is the user's own function where `GateConfig.importance` has one, else how far the output
    moves when a neuron is replaced by its mean.

    Raises:
        UsageError: where the user's function gives another shape, or numbers that are no
            importance.
    """
    own = gate.config.importance
    if own is None:
        return moments.importance(gate.mean)
    with torch.no_grad():
        found = own(moments)
    wanted = tuple(moments.first.shape)
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if shape not in (wanted, wanted[1:]):
        raise UsageError(
            f"importance gave {shape} for {gate.name}, of {wanted[1]} neurons on {wanted[0]} "
            f"inputs; it must give {wanted} or {wanted[1:]}"
        )
    if not bool(torch.isfinite(found).all()) or bool((found < 0).any()):
        raise UsageError(
            f"importance gave negative or infinite numbers for {gate.name}; the importance of a "
            "neuron is at least 0"
        )
    return found.to(moments.first).expand(wanted)
