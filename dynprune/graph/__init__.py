"""Find the neuron groups of any model."""

from dynprune.graph.groups import Grouping, ancestor, find_groups
from dynprune.graph.neurons import Axis, Channels, GroupKind, MacNode, NeuronGroup
from dynprune.graph.rules import RULES
from dynprune.graph.trace import Trace, trace
from dynprune.graph.walk import Labels, Rule, Walk

__all__ = [
    "RULES",
    "Axis",
    "Channels",
    "GroupKind",
    "Grouping",
    "Labels",
    "MacNode",
    "NeuronGroup",
    "Rule",
    "Trace",
    "Walk",
    "ancestor",
    "find_groups",
    "trace",
]
