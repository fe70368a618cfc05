"""The forms in which attention runs compactly, in code that was written for full-width heads."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations

from torch import nn

from dynprune.gate.heads import HeadWidth
from dynprune.gate.neuron_gate import NeuronGate
from dynprune.gate.plan import GroupPlan, HeadAttribute
from dynprune.graph.neurons import NeuronGroup

__all__ = ["forms_of", "head_attribute_sets", "head_attributes", "narrow"]

MOST = 5  # attributes that are tried in all their combinations


def head_attributes(model: nn.Module, group: NeuronGroup) -> list[HeadAttribute]:
    """Find the integers that modules around a group's producers keep about its heads.

    Code such as ``view(..., -1, self.head_dim)`` is right for narrow heads once the attribute is;
    which of the attributes matter is settled by running the module.

    Args:
        model: that holds the group.
        group: of kind ``qk`` or ``v``.
    """
    if not group.heads:
        return []
    width = group.neurons // group.heads
    found: list[HeadAttribute] = []
    for producer in group.producers:
        parts = producer.module.split(".")[:-1]
        if not parts:
            continue
        host = ".".join(parts)
        for attribute, value in vars(model.get_submodule(host)).items():
            if type(value) is not int or attribute.startswith("_"):
                continue
            if value in (width, group.neurons):
                entry = HeadAttribute(host, attribute, per_head=value == width)
                if entry not in found:
                    found.append(entry)
    return found[:MOST]


def head_attribute_sets(candidates: Sequence[HeadAttribute]) -> Iterator[tuple[HeadAttribute, ...]]:
    """Yield every subset of the candidates, small ones first."""
    for count in range(len(candidates) + 1):
        yield from combinations(candidates, count)


def forms_of(model: nn.Module, plans: Sequence[GroupPlan]) -> Iterator[list[GroupPlan]]:
    """Yield the forms in which groups may run compactly together, the cheapest first.

    First all tensors between the layers are narrow, under every subset of the attributes that may
    hold the width of a head; last the module's code sees heads of full width, and the products of
    attention alone are narrowed.

    Args:
        model: that holds the groups.
        plans: of groups that share heads or a layer.
    """
    wide = [plan for plan in plans if plan.products is not None]
    candidates: list[HeadAttribute] = []
    for plan in plans:
        candidates += [h for h in head_attributes(model, plan.group) if h not in candidates]
    for heads in head_attribute_sets(() if wide else candidates):
        yield [replace(plan, heads=heads, reason=None) for plan in plans]
    if len(wide) < len(plans) and any(plan.group.slots is not None for plan in plans):
        yield [replace(plan, heads=(), products=plan.group.slots, reason=None) for plan in plans]


def narrow(
    model: nn.Module, attributes: Sequence[HeadAttribute], gates: Sequence[NeuronGate]
) -> None:
    """Let these gates narrow these attributes when they run compactly, in place."""
    widths = [
        HeadWidth(module, a.attribute, int(getattr(module, a.attribute)), a.per_head)
        for a in attributes
        for module in [model.get_submodule(a.module)]
    ]
    for gate in gates:
        partners = [other for other in gates if other is not gate] if widths else []
        gate.narrow_heads(widths, partners)
