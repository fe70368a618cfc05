"""Find the neuron groups of any model."""

from dynprune.graph.groups import Grouping, ancestor, find_groups
from dynprune.graph.neurons import Axis, Channels, GroupKind, MacNode, NeuronGroup
from dynprune.graph.trace import Trace, trace

__all__ = [
    "Axis",
    "Channels",
    "GroupKind",
    "Grouping",
    "MacNode",
    "NeuronGroup",
    "Trace",
    "ancestor",
    "find_groups",
    "trace",
]
