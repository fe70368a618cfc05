"""Find the neuron groups of any model, each with its reason if it cannot be gated."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import nn

from dynprune.example import Example
from dynprune.graph.causality import Causality, find_causality
from dynprune.graph.costs import cost_nodes
from dynprune.graph.neurons import MacNode, NeuronGroup
from dynprune.graph.partition import partition
from dynprune.graph.rules import RULES
from dynprune.graph.trace import Method, Trace, trace
from dynprune.graph.walk import Rule, Walk

__all__ = ["Grouping", "ancestor", "find_groups"]


@dataclass(frozen=True, eq=False)
class Grouping:
    """The neuron groups of a model.

    Attributes:
        groups: candidates (``reason`` None) and rejected groups, in the order in which they run.
        costs: every multiply-add-bearing operation, for the example's batch.
        seconds: time that finding them took, tracing included.
        method: how the model was traced, ``export`` or ``make_fx``.
        notes: what the reader must know to trust the result.
        transposed: layers of the groups that store their weight as (in, out).
    """

    groups: tuple[NeuronGroup, ...]
    costs: tuple[MacNode, ...]
    seconds: float
    method: Method
    notes: tuple[str, ...] = ()
    transposed: frozenset[str] = frozenset()

    @property
    def candidates(self) -> tuple[NeuronGroup, ...]:
        """The groups that can be gated, as far as the graph tells."""
        return tuple(group for group in self.groups if group.reason is None)


def find_groups(
    model: nn.Module, example: Example, *, rules: Mapping[str, Rule] = RULES
) -> Grouping:
    """Find every neuron group of ``model`` by tracing one call of it.

    Args:
        model: any module; neither its weights nor its training flags change.
        example: one call of it.
        rules: what each operation does to the labels of neurons, by its ATen name or, outside of
            ATen, ``namespace::name``; an operation without a rule refuses what passes through it.

    Returns:
        Groups and multiply-adds.

    Raises:
        UsageError: the model fails on the example.
    """
    start = time.perf_counter()
    traced = trace(model, example)
    propagation = Walk(traced, rules).run()
    found, owner = partition(propagation)
    for branch in traced.branches:
        found = list(_held_against(found, branch, rules))
    causality = find_causality(model, example, found)
    groups = tuple(_judged(group, causality) for group in found)
    return Grouping(
        groups,
        cost_nodes(propagation, owner, groups),
        time.perf_counter() - start,
        traced.method,
        traced.notes,
        frozenset(layer.module for layer in propagation.layers.values() if layer.transposed),
    )


def _judged(group: NeuronGroup, causality: Causality) -> NeuronGroup:
    """Say of a group whether its gate would show earlier tokens later ones."""
    maker = group.producers[0].module
    reason = group.reason or causality.untried.get(maker)
    return replace(group, causal=maker in causality.causal, reason=reason)


def _held_against(
    groups: Iterable[NeuronGroup], branch: Trace, rules: Mapping[str, Rule]
) -> Iterator[NeuronGroup]:
    """Refuse the groups whose layers do something else with their neurons on another branch."""
    propagation = Walk(branch, rules).run()
    others = partition(propagation)[0]
    alike = {_identity(other) for other in others if other.reason is None}
    runs = {layer.module for layer in propagation.layers.values()}
    for group in groups:
        if group.reason is not None or _identity(group) in alike or runs.isdisjoint(group.modules):
            yield group
            continue
        maker = group.producers[0].module
        same = [other for other in others if maker in {made.module for made in other.producers}]
        why = next((o.reason for o in same if o.reason), "its neurons are led elsewhere")
        yield replace(group, reason=f"where its values take another branch: {why}")


def _identity(group: NeuronGroup) -> str:
    """Return what two groups of the same neurons and layers agree in."""
    return json.dumps(replace(group, name="").to_json())


def ancestor(group: NeuronGroup) -> str:
    """The innermost module whose subtree holds every module of a group ("" for the model).

    It is always a proper ancestor: a group of one layer (fused query, key and value) gives the
    layer's parent, where its neurons meet.
    """
    parents = [name.split(".")[:-1] for name in group.modules]
    shared: list[str] = []
    for parts in zip(*parents, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)
