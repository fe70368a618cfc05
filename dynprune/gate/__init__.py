"""Dynamic gated linear layers: selection, execution, injection and the way back."""

from dynprune.gate.attach import gate_model, plan_groups
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
from dynprune.gate.neuron_gate import GateConfig, NeuronGate, Selection
from dynprune.gate.plan import GroupPlan
from dynprune.gate.topr import kept_count

__all__ = [
    "Attachment",
    "DynamicLinear",
    "GateConfig",
    "GroupPlan",
    "InstanceLayout",
    "NeuronGate",
    "Selection",
    "attached",
    "gate_model",
    "gate_parameters",
    "gates",
    "inject",
    "is_gated",
    "kept_count",
    "plan_groups",
    "remove",
    "set_execution",
    "set_prune_ratio",
    "set_sparsity_progress",
]
