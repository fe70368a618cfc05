"""What a label walk finds: who makes, passes on, reads, ties or disqualifies each neuron."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dynprune.graph.labels import ids

__all__ = ["Attention", "Ids", "Layer", "Product", "Propagation", "components"]

Ids = npt.NDArray[np.int64]


@dataclass(eq=False)
class Layer:
    """One layer that multiplies channels by a weight.

    Attributes:
        module: fully qualified name.
        first: id of its first output channel.
        inputs: length of the axis that it sums over.
        outputs: output channels.
        is_linear: whether it is a linear map of each token, unlike a 3x3 convolution.
        transposed: whether the weight is stored as (in, out).
        faults: why the layer cannot be replaced by a gated one.
    """

    module: str
    first: int
    inputs: int
    outputs: int
    is_linear: bool = True
    transposed: bool = False
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Product:
    """One multiply-add-bearing operation, with the neuron at each position of its two axes."""

    module: str
    op: str
    macs: int
    out: Ids | None = None
    contraction: Ids | None = None


@dataclass(frozen=True, eq=False)
class Attention:
    """One product of two activations, as the model's code asked for it.

    Attributes:
        module: innermost module that ran it.
        scored: ids at the slots that it sums over, (heads, slots); None for none.
        valued: ids at the slots whose tokens it mixes, likewise.
        plain: whether heads are one axis before tokens and channels, on both sides, and no other
            axis but that of the channels tells neurons apart.
    """

    module: str
    scored: Ids | None = None
    valued: Ids | None = None
    plain: bool = True


@dataclass(eq=False)
class Propagation:
    """Everything that a walk through the graph finds out.

    Attributes:
        layers: key -> layer; ids ascend in this order.
        reads: (layer, id at each of its input channels).
        carries: (module, id at each of its channels).
        parameters: (parameter's name, ids), used per channel outside a module of its own kind.
        scores: ids of every QK^T, (heads, slots).
        values: ids of every attention times values, (heads, slots).
        attentions: every product of two activations, in the order in which they run.
        ties: pairs of ids that must be kept or skipped together.
        sums: pairs of ids that an addition joins; they are ties too.
        beside: layer of a branch -> the layer to whose outputs its own are added.
        disqualifies: (ids, why they cannot be gated).
        shifts: (ids, operation under which a skipped neuron does not stay zero).
        products: the multiply-adds.
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    reads: list[tuple[Layer, Ids]] = field(default_factory=list)
    carries: list[tuple[str, Ids]] = field(default_factory=list)
    parameters: list[tuple[str, Ids]] = field(default_factory=list)
    scores: list[Ids] = field(default_factory=list)
    values: list[Ids] = field(default_factory=list)
    attentions: list[Attention] = field(default_factory=list)
    ties: list[Tensor] = field(default_factory=list)
    sums: list[Tensor] = field(default_factory=list)
    beside: dict[Layer, Layer] = field(default_factory=dict)
    disqualifies: list[tuple[Ids, str]] = field(default_factory=list)
    shifts: list[tuple[Ids, str]] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    size: int = 1
    _tainted: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.bool))

    def layer(self, key: str, module: str, inputs: int, outputs: int) -> Layer:
        """The layer of this key, with ids for its output channels."""
        if key not in self.layers:
            self.layers[key] = Layer(module, self.size, inputs, outputs)
            self.size += outputs
            fresh = torch.zeros(outputs, dtype=torch.bool)
            self._tainted = torch.cat([self._tainted, fresh])
        return self.layers[key]

    def made_by(self, layer: Layer) -> Tensor:
        """Labels of a layer's output channels, (outputs,)."""
        return torch.arange(layer.first, layer.first + layer.outputs, dtype=torch.int32)

    def disqualify(self, labels: Tensor | None, reason: str) -> None:
        """Say that these neurons cannot be gated."""
        if labels is None:
            return
        found = ids(labels).long()
        self._tainted[found] = True
        self.disqualifies.append((found.numpy(), reason))

    def is_disqualified(self, labels: Tensor) -> bool:
        """Whether none of these neurons can be gated, as far as is known by now."""
        return bool(self._tainted[ids(labels).long()].all())

    def tie(self, a: Tensor, b: Tensor, *, by_sum: bool = False) -> None:
        """Say that neurons at equal positions of two equally shaped label tensors go together."""
        meet = (a != 0) & (b != 0) & (a != b)
        if bool(meet.any()):
            pairs = torch.stack([a[meet], b[meet]]).long()
            self.ties.append(pairs)
            if by_sum:
                self.sums.append(pairs)

    def owner(self, found: Ids) -> Ids:
        """Position among ``layers`` of the layer that makes each id."""
        firsts = np.fromiter((layer.first for layer in self.layers.values()), np.int64)
        return np.searchsorted(firsts, found, side="right") - 1


def components(size: int, pairs: Ids) -> Ids:
    """Label the connected components of a graph by their smallest vertex.

    Args:
        size: vertices 0 .. size - 1.
        pairs: (2, edges).

    Returns:
        (size,) smallest vertex of each vertex's component.
    """
    root = np.arange(size)
    a, b = pairs
    while len(a):
        ra, rb = root[a], root[b]
        low, high = np.minimum(ra, rb), np.maximum(ra, rb)
        apart = low != high
        a, b = a[apart], b[apart]
        np.minimum.at(root, high[apart], low[apart])
        while True:  # Pointer jumping: every vertex ends at its root.
            jumped = root[root]
            if np.array_equal(jumped, root):
                break
            root = jumped
    return root
