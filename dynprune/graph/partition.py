"""Gather the neurons of a propagation into groups of neurons with the same history."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from dynprune.graph.neurons import Channels, GroupKind, NeuronGroup
from dynprune.graph.propagation import Ids, Layer, Propagation, components
from dynprune.graph.reasons import History, is_shown, reasons_of
from dynprune.graph.slots import slots_of

__all__ = ["partition"]


def partition(propagation: Propagation) -> tuple[list[NeuronGroup], Ids]:
    """Form the neuron groups of a propagation.

    Ids that are tied are one neuron. Neurons with the same history (made, carried, read, met and
    disqualified by the same layers as often) are one group.

    Returns:
        Groups in the order in which their first producers run, and for every id the place of its
        group in that list, or -1.
    """
    root = components(propagation.size, _joined(propagation.ties))
    gatherer = _Partition(propagation, root)
    drafts: list[tuple[int, NeuronGroup, Ids]] = []
    for number, history in sorted(gatherer.histories().items()):
        if history.made and is_shown(history):
            drafts.append(gatherer.draft(number, history))
    drafts.sort(key=lambda draft: (draft[0], draft[1].kind))
    owner = np.full(propagation.size, -1, np.int64)
    for place, (_, _, keys) in enumerate(drafts):
        owner[keys] = place
    return _named([group for _, group, _ in drafts]), owner[root]


def _joined(pairs: list[torch.Tensor]) -> Ids:
    return torch.cat(pairs, 1).numpy() if pairs else np.zeros((2, 0), np.int64)


@dataclass
class _Partition:
    """The neurons of a propagation, each with the number of its group.

    Attributes:
        propagation: what the walk found.
        root: (ids,) the neuron that each id belongs to, named by its smallest id.
        number: (ids,) group of each neuron.
        rank: (ids,) place of each neuron in its group, once the group is drafted.
    """

    propagation: Propagation
    root: Ids
    number: Ids = field(init=False)
    rank: Ids = field(init=False)

    def __post_init__(self) -> None:
        self._carried = {module: self.root[found] for module, found in self.propagation.carries}
        self._read: dict[Layer, list[Ids]] = defaultdict(list)
        for layer, read in self.propagation.reads:
            self._read[layer].append(self.root[read])
        self.rank = np.zeros(self.propagation.size, np.int64)
        self.number = self._numbers()

    def _events(self) -> Iterator[tuple[tuple[str, object], Ids]]:
        """Everything that happens to neurons: what it is, and to which, as often as it does."""
        propagation = self.propagation
        for layer in propagation.layers.values():
            yield ("made", layer), self._made(layer)
        for layer, read in propagation.reads:
            yield ("read", layer), self.root[read]
        for module, carried in propagation.carries:
            yield ("carried", module), self.root[carried]
        once: dict[tuple[str, object], list[Ids]] = defaultdict(list)
        for name, found in propagation.parameters:
            once["parameters", name].append(found)
        for found, reason in propagation.disqualifies:
            once["reasons", reason].append(found)
        for found, what in propagation.shifts:
            once["shifts", what].append(found)
        for rows in propagation.scores:
            once["scored", True].append(rows.reshape(-1))
        for rows in propagation.values:
            once["valued", True].append(rows.reshape(-1))
        sums = _joined(propagation.sums)
        if sums.size:
            makers = propagation.owner(sums)
            once["summed", True].append(sums[0][makers[0] != makers[1]])
        for event, parts in once.items():
            yield event, np.unique(self.root[np.concatenate(parts)])

    def _numbers(self) -> Ids:
        """Number the histories: neurons with equal sums of random event weights share one."""
        draw = np.random.default_rng(0)
        code = np.zeros(self.propagation.size, np.uint64)
        for (event, _), keys in self._events():
            if event == "shifts":  # Only matters to queries and keys, and then to all of them.
                continue
            weight = draw.integers(1, 2**63, dtype=np.uint64)
            found, counts = np.unique(keys, return_counts=True)
            code[found] += weight * counts.astype(np.uint64)
        code[0] = 0  # The id of no neuron.
        return np.unique(code, return_inverse=True)[1].reshape(-1)

    def histories(self) -> dict[int, History]:
        """What happens to the neurons of each group."""
        histories: dict[int, History] = defaultdict(History)
        nothing = self.number[0]
        for event, keys in self._events():
            for number in np.unique(self.number[keys[keys != 0]]).tolist():
                if number != nothing:
                    histories[number].add(*event)
        return dict(histories)

    def draft(self, number: int, history: History) -> tuple[int, NeuronGroup, Ids]:
        """Build one group, with its reason: first id, group and neurons in order."""
        keys = np.unique(self.root[self.number[self.root] == number])
        kind: GroupKind = "qk" if history.scored else "v" if history.valued else "ffn"
        tables: list[Ids] = []
        if kind != "ffn":
            tables = self.propagation.scores if kind == "qk" else self.propagation.values
        heads, keys, uneven = _heads(keys, [self.root[table] for table in tables])
        self.rank[keys] = np.arange(len(keys))
        first = min(history.made, key=lambda layer: layer.first)
        group = NeuronGroup(
            name=first.module,
            kind=kind,
            producers=tuple(
                Channels(
                    layer.module,
                    self._positions(number, [self._made(layer)]),
                    layer.outputs,
                    self.propagation.beside[layer].module
                    if layer in self.propagation.beside
                    else None,
                )
                for layer in history.made
            ),
            carriers=tuple(
                Channels(module, self._positions(number, [axis]), len(axis))
                for module in history.carried
                for axis in [self._carried[module]]
            ),
            consumers=tuple(
                Channels(layer.module, self._positions(number, self._read[layer]), layer.inputs)
                for layer in history.read
            ),
            neurons=len(keys),
            heads=heads,
            parameters=tuple(history.parameters),
        )
        if kind != "ffn" and heads and uneven is None:
            makers = [layer.module for layer in history.made]
            slots = slots_of(self.propagation.attentions, makers, self.root, keys, heads)
            group = replace(group, slots=slots)
        reasons = reasons_of(group, history, uneven)
        said = "; ".join(list(dict.fromkeys(reasons))[:2])
        return first.first, replace(group, reason=said or None), keys

    def _positions(self, number: int, axes: list[Ids]) -> torch.Tensor:
        """Positions of each neuron of a group along an axis, (neurons, m).

        Args:
            number: of the group.
            axes: the neuron at each position, once for each call.
        """
        places = [np.flatnonzero((self.number[axis] == number) & (axis != 0)) for axis in axes]
        ranks = np.concatenate(
            [self.rank[axis[place]] for axis, place in zip(axes, places, strict=True)]
        )
        positions = np.concatenate(places)
        table = positions[np.lexsort((positions, ranks))].reshape(len(np.unique(ranks)), -1)
        # Several calls that read a neuron at one position are one.
        return torch.from_numpy(np.unique(table, axis=1))

    def _made(self, layer: Layer) -> Ids:
        return self.root[layer.first : layer.first + layer.outputs]


def _heads(keys: Ids, tables: Iterable[Ids]) -> tuple[int, Ids, str | None]:
    """Sort the neurons of an attention group head by head.

    Args:
        keys: the neurons.
        tables: neuron of each slot of each head, (heads, slots); heads may repeat.

    Returns:
        Heads, the neurons in head-major order, and what is wrong if heads are not alike.
    """
    heads: dict[tuple[int, ...], int] = {}
    placed: dict[int, int] = {}
    for table in tables:
        for row in table[np.isin(table, keys).any(1)].tolist():
            head = heads.setdefault(tuple(row), len(heads))
            for key in row:
                if placed.setdefault(key, head) != head:
                    return len(heads), keys, "its neurons are shared between attention heads"
    if not placed:
        return 0, keys, None
    inside = set(keys.tolist())
    order = np.array([key for key in placed if key in inside])
    counts = np.bincount([head for key, head in placed.items() if key in inside])
    if len(set(counts.tolist())) > 1:
        return len(heads), order, "its attention heads have different numbers of neurons"
    return len(heads), order, None


def _named(groups: list[NeuronGroup]) -> list[NeuronGroup]:
    """Return groups of one producer a suffix each."""
    together = Counter(group.name for group in groups)
    seen: Counter[str] = Counter()
    named = []
    for group in groups:
        label = group.name
        if together[label] > 1:
            label = f"{group.name}[{group.kind}]"
            seen[label] += 1
            if seen[label] > 1:
                label = f"{group.name}[{group.kind}.{seen[label]}]"
        named.append(replace(group, name=label))
    return named
