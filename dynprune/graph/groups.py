"""Gather what a label walk found into neuron groups, each with its reason if it cannot be gated."""

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

from dynprune.example import Example
from dynprune.graph.causality import causal_modules
from dynprune.graph.costs import cost_nodes
from dynprune.graph.ledger import Ids, Layer, Ledger, components
from dynprune.graph.neurons import Channels, GroupKind, MacNode, NeuronGroup
from dynprune.graph.rules import RULES
from dynprune.graph.rules.pointwise import ADDED
from dynprune.graph.trace import Method, trace
from dynprune.graph.walk import Walk

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


def find_groups(model: nn.Module, example: Example) -> Grouping:
    """Find every neuron group of ``model`` by tracing one call of it.

    Args:
        model: any module; neither its weights nor its training flags change.
        example: one call of it.

    Returns:
        Groups and multiply-adds.

    Raises:
        UsageError: the model fails on the example.
    """
    start = time.perf_counter()
    traced = trace(model, example)
    ledger = Walk(traced, RULES).run()
    found, owner = _gather(ledger)
    groups = tuple(found)
    causal = causal_modules(model, example, groups)
    groups = tuple(
        replace(group, causal=True) if group.producers[0].module in causal else group
        for group in groups
    )
    return Grouping(
        groups,
        cost_nodes(ledger, owner, groups),
        time.perf_counter() - start,
        traced.method,
        traced.notes,
        frozenset(layer.module for layer in ledger.layers.values() if layer.transposed),
    )


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


@dataclass
class _Class:
    """One neuron: a set of ids that are kept or skipped together.

    Attributes:
        made: layer's place in the ledger -> rows.
        read: likewise -> columns.
        carried: module -> channels.
        parameters: names.
        scored: whether it is summed over in a QK^T.
        valued: whether attention weights mix it.
        reasons: why it cannot be gated.
        summed: whether an addition joins several layers' outputs in it.
    """

    made: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    read: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    carried: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    parameters: dict[str, None] = field(default_factory=dict)
    scored: bool = False
    valued: bool = False
    reasons: dict[str, None] = field(default_factory=dict)
    summed: bool = False

    @property
    def signature(self) -> tuple[object, ...]:
        """What neurons of one group have in common."""
        return (
            tuple((k, len(v)) for k, v in sorted(self.made.items())),
            tuple((k, len(v)) for k, v in sorted(self.read.items())),
            tuple((k, len(v)) for k, v in sorted(self.carried.items())),
            tuple(self.parameters),
            self.scored,
            self.valued,
            self.summed,
            tuple(self.reasons),
        )


def _gather(ledger: Ledger) -> tuple[list[NeuronGroup], Ids]:
    """The groups of a ledger.

    Returns:
        Groups in the order in which their first producers run, and for every id the place of its
        group in that list, or -1.
    """
    root = components(ledger.size, _pairs(ledger.ties))
    layers = list(ledger.layers.values())
    classes = _classes(ledger, root, layers)
    alike: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for key, neuron in classes.items():
        if _is_neuron(neuron, layers):
            alike[neuron.signature].append(key)
    scores = [root[rows] for rows in ledger.scores]
    values = [root[rows] for rows in ledger.values]
    drafts: list[tuple[int, NeuronGroup, list[int]]] = []
    for keys in alike.values():
        first = classes[keys[0]]
        kind: GroupKind = "qk" if first.scored else "v" if first.valued else "ffn"
        rows = scores if first.scored else values if first.valued else []
        heads, order, uneven = _heads(keys, rows)
        reasons = list(first.reasons)
        reasons += _layer_reasons(first, layers) + ([uneven] if uneven else [])
        if kind == "qk":
            reasons += _query_reasons(first, layers)
        shift = _shifts(ledger, root, keys) if kind == "qk" else None
        if shift:
            reasons.append(f"a skipped query or key would not stay zero: {shift}")
        keys = order if order else sorted(keys)
        members = [classes[key] for key in keys]
        group = NeuronGroup(
            name=layers[min(first.made)].module,
            kind=kind,
            producers=_channels([m.made for m in members], layers, "outputs"),
            carriers=_carriers(members, ledger),
            consumers=_channels([m.read for m in members], layers, "inputs"),
            neurons=len(keys),
            heads=heads,
            reason=None,
            parameters=tuple(first.parameters),
        )
        if len(keys) < 2:
            reasons.append("its channels are all tied into one neuron")
        reasons += _order_reasons(group)
        drafts.append((min(first.made), replace(group, reason=_said(reasons)), keys))
    drafts.sort(key=lambda draft: (draft[0], draft[1].kind))
    groups = _named([group for _, group, _ in drafts])
    owner = np.full(ledger.size, -1, np.int64)
    for place, (_, _, keys) in enumerate(drafts):
        owner[keys] = place
    return groups, owner[root]


def _pairs(pairs: list[torch.Tensor]) -> Ids:
    return torch.cat(pairs, 1).numpy() if pairs else np.zeros((2, 0), np.int64)


def _classes(ledger: Ledger, root: Ids, layers: list[Layer]) -> dict[int, _Class]:
    """Every neuron that anything is known of."""
    classes: dict[int, _Class] = defaultdict(_Class)
    for place, layer in enumerate(layers):
        for row, key in enumerate(root[layer.first : layer.first + layer.outputs].tolist()):
            classes[key].made[place].append(row)
    places = {id(layer): place for place, layer in enumerate(layers)}
    for layer, read in ledger.reads:
        place = places[id(layer)]
        for column, key in enumerate(root[read].tolist()):
            if key:
                classes[key].read[place].append(column)
    for module, carried in ledger.carries:
        for channel, key in enumerate(root[carried].tolist()):
            if key:
                classes[key].carried[module].append(channel)
    for name, found in ledger.parameters:
        for key in np.unique(root[found]).tolist():
            classes[key].parameters[name] = None
    for rows in ledger.scores:
        for key in np.unique(root[rows]).tolist():
            classes[key].scored = True
    for rows in ledger.values:
        for key in np.unique(root[rows]).tolist():
            classes[key].valued = True
    for found, reason in ledger.taints:
        for key in np.unique(root[found]).tolist():
            classes[key].reasons[reason] = None
    sums = _pairs(ledger.sums)
    if sums.size:
        makers = ledger.owner(sums)
        for key in np.unique(root[sums[0][makers[0] != makers[1]]]).tolist():
            classes[key].summed = True
    classes.pop(0, None)
    return classes


def _is_neuron(neuron: _Class, layers: list[Layer]) -> bool:
    """Whether a user would call it one: made by linear layers, and read or met by others.

    Neurons that something else swallows are shown with the reason. A residual stream is not where
    a norm or a wide convolution makes it hopeless anyway, nor is an output.
    """
    makers = [layers[place] for place in neuron.made]
    residual = neuron.summed or ADDED in neuron.reasons
    hopeless = bool(_NORMALISED & set(neuron.reasons)) or not all(m.is_linear for m in makers)
    if not any(maker.is_linear for maker in makers) or (residual and hopeless):
        return False
    if neuron.read or neuron.scored or neuron.valued:
        return True
    return bool(neuron.reasons) and not residual and _RETURNED not in neuron.reasons


_RETURNED = "returned as an output of the model"
_NORMALISED = {
    "a LayerNorm mixes its channels",
    "a GroupNorm mixes its channels",
    "a RMSNorm mixes its channels",
    "the model averages its channels",
}


def _heads(keys: list[int], rows: Iterable[Ids]) -> tuple[int, list[int], str | None]:
    """Sort the neurons of an attention group head by head.

    Returns:
        Heads, the neurons in head-major order, and a reason if heads are not alike.
    """
    wanted = np.zeros(max(keys) + 1, bool)
    wanted[keys] = True
    placed: dict[int, tuple[int, int]] = {}
    heads: dict[tuple[int, ...], int] = {}
    for table in rows:
        inside = (table < len(wanted)) & wanted[np.minimum(table, len(wanted) - 1)]
        for row in table[inside.any(1)].tolist():
            head = heads.setdefault(tuple(row), len(heads))
            for slot, key in enumerate(row):
                if (
                    key < len(wanted)
                    and wanted[key]
                    and placed.setdefault(key, (head, slot))[0] != head
                ):
                    return len(heads), [], "its neurons are shared between attention heads"
    order = sorted(placed, key=placed.__getitem__)
    counts = np.bincount([head for head, _ in placed.values()]) if placed else np.zeros(0)
    if len(set(counts.tolist())) > 1:
        return len(heads), order, "its attention heads have different numbers of neurons"
    return len(heads), order, None


def _layer_reasons(neuron: _Class, layers: list[Layer]) -> list[str]:
    reasons = [fault for place in (*neuron.made, *neuron.read) for fault in layers[place].faults]
    both = sorted(set(neuron.made) & set(neuron.read))
    reasons += [f"{layers[place].module} both makes and reads these neurons" for place in both]
    if neuron.summed:
        makers = ", ".join(layers[place].module for place in sorted(neuron.made)[:3])
        reasons.append(
            f"an addition joins the outputs of several layers ({makers}): a residual stream"
        )
    return reasons


def _query_reasons(neuron: _Class, layers: list[Layer]) -> list[str]:
    reasons = []
    if neuron.read:
        reader = layers[min(neuron.read)].module
        reasons.append(f"queries or keys that {reader} reads as well")
    if neuron.valued:
        reasons.append("queries or keys that are values as well")
    return reasons


def _shifts(ledger: Ledger, root: Ids, keys: list[int]) -> str | None:
    wanted = set(keys)
    for found, what in ledger.shifts:
        if wanted & set(root[found].tolist()):
            return what
    return None


def _order_reasons(group: NeuronGroup) -> list[str]:
    """Refuse neurons that stand in another order where they are read than where they are made."""
    order = torch.argsort(group.producers[0].index[:, 0])
    for channels in (*group.producers, *group.carriers, *group.consumers):
        steps = channels.index[order].diff(dim=0)
        if bool((steps < 0).any()):
            maker = group.producers[0].module
            return [f"its channels stand in another order at {channels.module} than at {maker}"]
    return []


def _channels(
    uses: list[dict[int, list[int]]], layers: list[Layer], axis: str
) -> tuple[Channels, ...]:
    return tuple(
        Channels(
            layers[place].module,
            torch.tensor([sorted(use[place]) for use in uses]),
            getattr(layers[place], axis),
        )
        for place in sorted(uses[0])
    )


def _carriers(members: list[_Class], ledger: Ledger) -> tuple[Channels, ...]:
    sizes = {module: len(found) for module, found in ledger.carries}
    ran = list(dict.fromkeys(module for module, _ in ledger.carries))
    return tuple(
        Channels(module, torch.tensor([sorted(m.carried[module]) for m in members]), sizes[module])
        for module in ran
        if module in members[0].carried
    )


def _said(reasons: list[str]) -> str | None:
    """One sentence of at most two reasons."""
    return "; ".join(list(dict.fromkeys(reasons))[:2]) or None


def _named(groups: list[NeuronGroup]) -> list[NeuronGroup]:
    """Give groups of one producer a suffix each."""
    shared: dict[str, list[NeuronGroup]] = defaultdict(list)
    for group in groups:
        shared[group.name].append(group)
    named = []
    seen: dict[str, int] = defaultdict(int)
    for group in groups:
        name = group.name
        if len(shared[name]) > 1:
            label = f"{name}[{group.kind}]"
            seen[label] += 1
            name = label if seen[label] == 1 else f"{name}[{group.kind}.{seen[label]}]"
        named.append(replace(group, name=name))
    return named
