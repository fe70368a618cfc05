"""Dynamic gated linear layers: selection, execution, injection and the way back."""

from dynprune.gate.attach import gate_model, plan_groups
from dynprune.gate.call import Observation, forcing, observing, recording
from dynprune.gate.compensation import fold_means
from dynprune.gate.config import GateConfig
from dynprune.gate.execution import set_execution, set_prune_ratio, set_sparsity_progress
from dynprune.gate.inject import (
    Attachment,
    attached,
    gate_parameters,
    gates,
    inject,
    is_gated,
    remove,
)
from dynprune.gate.instances import InstanceLayout
from dynprune.gate.linear import DynamicLinear
from dynprune.gate.neuron_gate import NeuronGate
from dynprune.gate.plan import GroupPlan
from dynprune.gate.selection import GateOutput, Selection
from dynprune.gate.settle import settle
from dynprune.gate.topr import kept_count

__all__ = [
    "Attachment",
    "DynamicLinear",
    "GateConfig",
    "GateOutput",
    "GroupPlan",
    "InstanceLayout",
    "NeuronGate",
    "Observation",
    "Selection",
    "attached",
    "fold_means",
    "forcing",
    "gate_model",
    "gate_parameters",
    "gates",
    "inject",
    "is_gated",
    "kept_count",
    "observing",
    "plan_groups",
    "recording",
    "remove",
    "set_execution",
    "set_prune_ratio",
    "set_sparsity_progress",
    "settle",
]
