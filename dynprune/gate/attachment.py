"""The record of what was put into a model, kept on the model, and the gates that it has."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn
from torch.utils.hooks import RemovableHandle

from dynprune.errors import UsageError
from dynprune.gate.call import Scope
from dynprune.gate.neuron_gate import NeuronGate
from dynprune.gate.plan import GroupPlan
from dynprune.host.fused_paths import ClosedPath

__all__ = ["ATTRIBUTE", "Attachment", "attached", "gate_parameters", "gates", "is_gated"]

ATTRIBUTE = "_dynprune"


@dataclass
class Attachment:
    """What `inject` did to a model, kept on it so that it can be undone and written down.

    Attributes:
        plans: every group that was considered, with its mode.
        originals: the modules that were replaced, by name.
        scope: notes the calls of the model's modules.
        replacements: what stands in their places.
        strides: of parameters that were laid out anew, as they were.
        closed: torch's fused layers that would read past the gates.
        made: changes that stood before the gates, see `count_made`.
        handles: hooks by which products of attention are narrowed.
    """

    plans: tuple[GroupPlan, ...]
    originals: dict[str, nn.Module] = field(default_factory=dict)
    scope: Scope = field(default_factory=Scope)
    replacements: dict[str, nn.Module] = field(default_factory=dict)
    strides: list[tuple[nn.Parameter, tuple[int, ...]]] = field(default_factory=list)
    closed: tuple[ClosedPath, ...] = ()
    made: int = 0
    handles: list[RemovableHandle] = field(default_factory=list)


def is_gated(model: nn.Module) -> bool:
    """Whether `inject` has been at work on the model."""
    return isinstance(vars(model).get(ATTRIBUTE), Attachment)


def attached(model: nn.Module) -> Attachment:
    """Return the record of what was done to a gated model.

    Raises:
        UsageError: where the model is not gated.
    """
    record = vars(model).get(ATTRIBUTE)
    if not isinstance(record, Attachment):
        raise UsageError("The model is not gated: call dynprune.apply first.")
    return record


def gates(model: nn.Module) -> dict[str, NeuronGate]:
    """Return the gates of a model by their group's name, in the order of its modules.

    Those of a gated model inside it are its own.
    """
    record = vars(model).get(ATTRIBUTE)
    scope = record.scope if isinstance(record, Attachment) else None
    found = (m for m in model.modules() if isinstance(m, NeuronGate))
    return {m.name: m for m in found if scope is None or m.members.scope is scope}


def gate_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters that the gates brought with them."""
    for gate in gates(model).values():
        yield from gate.parameters()
