"""What a neuron group is: the channels of the modules that make, pass on and read its neurons."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dynprune.graph.slots import HeadSlots

__all__ = ["Axis", "Channels", "GroupKind", "MacNode", "NeuronGroup"]

MOST_CALLS = 64  # of one layer, that are believed of a record

GroupKind = Literal["ffn", "qk", "v"]


@dataclass(frozen=True, eq=False)
class Channels:
    """Where the neurons of a group sit along one axis of one module.

    For a producer the axis is the module's output channels (rows of a linear weight), for a
    consumer its input channels (columns), for a carrier (depthwise convolution, batch norm) its
    channels.

    Attributes:
        module: fully qualified name of the module.
        index: (neurons, m) int64; row ``j`` holds the m positions of neuron ``j`` along the axis.
            m is 1 for a plain linear, 2 where one neuron has a gate and an up row in a fused
            SwiGLU projection, and so on.
        size: length of the module's axis; positions that no group names are not gated.
        beside: the layer to whose outputs those of this one are added, where it is a branch (a
            low-rank adapter); None for a layer that makes its neurons by itself.
    """

    module: str
    index: Tensor
    size: int
    beside: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the neurons are the whole axis, in order, one position each."""
        neurons, width = self.index.shape
        return (
            width == 1
            and neurons == self.size
            and torch.equal(self.index[:, 0], torch.arange(neurons))
        )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form in which a run of consecutive positions takes its start alone."""
        columns: list[Any] = []
        for column in self.index.unbind(1):
            start = int(column[0])
            run = torch.arange(start, start + len(column))
            columns.append(start if torch.equal(column, run) else column.tolist())
        record: dict[str, Any] = {
            "module": self.module,
            "size": self.size,
            "neurons": len(self.index),
            "index": columns,
        }
        return record if self.beside is None else {**record, "beside": self.beside}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Channels":
        """Read what `to_json` returned."""
        neurons, size = int(record["neurons"]), int(record["size"])
        # A layer that is called several times may read a neuron at several positions.
        if not 0 < neurons * len(record["index"]) <= MOST_CALLS * size:
            raise ValueError(f"{len(record['index'])} x {neurons} positions on an axis of {size}")
        columns = [
            torch.arange(column, column + neurons)
            if isinstance(column, int)
            else torch.tensor(column, dtype=torch.int64)
            for column in record["index"]
        ]
        return cls(record["module"], torch.stack(columns, 1), size, record.get("beside"))


@dataclass(frozen=True, eq=False)
class NeuronGroup:
    """Neurons that must be kept or skipped together, and every place where they appear.

    Attributes:
        name: unique and stable: the first producer's name, with ``[qk]`` or ``[v]`` behind it
            where one module makes more than one group.
        kind: ``ffn`` (hidden layer), ``qk`` (queries and keys, one index set) or ``v``.
        producers: linears whose output channels are the neurons, in the order in which they run.
        carriers: modules that pass the neurons on channel by channel and hold per-channel
            parameters.
        consumers: linears whose input channels are the neurons; none for ``qk``.
        neurons: how many.
        heads: attention heads that the neurons fall into, in head-major order; 0 for ``ffn``.
        reason: why the group cannot be gated, or None for a candidate.
        parameters: per-channel parameters (fully qualified names) that are used in the neurons'
            path without a module of their own kind; where there are any the group cannot be
            narrowed, only scattered.
        causal: whether the neurons are made for tokens that must not see the future.
        slots: where the neurons stand in the products of attention, where every head is alike; not
            written down with the group.
    """

    name: str
    kind: GroupKind
    producers: tuple[Channels, ...]
    carriers: tuple[Channels, ...]
    consumers: tuple[Channels, ...]
    neurons: int
    heads: int = 0
    reason: str | None = None
    parameters: tuple[str, ...] = ()
    causal: bool = False
    slots: HeadSlots | None = None

    @property
    def modules(self) -> list[str]:
        """The names of all modules of the group, producers first."""
        return [c.module for c in (*self.producers, *self.carriers, *self.consumers)]

    @property
    def segments(self) -> int:
        """Equal parts that each keep the same number of neurons: the heads, or 1."""
        return max(1, self.heads)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form of the whole group."""
        return {
            "name": self.name,
            "kind": self.kind,
            "producers": [c.to_json() for c in self.producers],
            "carriers": [c.to_json() for c in self.carriers],
            "consumers": [c.to_json() for c in self.consumers],
            "neurons": self.neurons,
            "heads": self.heads,
            "reason": self.reason,
            "parameters": list(self.parameters),
            "causal": self.causal,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "NeuronGroup":
        """Read what `to_json` returned."""

        def channels(items: Sequence[dict[str, Any]]) -> tuple[Channels, ...]:
            return tuple(Channels.from_json(item) for item in items)

        return cls(
            name=record["name"],
            kind=record["kind"],
            producers=channels(record["producers"]),
            carriers=channels(record["carriers"]),
            consumers=channels(record["consumers"]),
            neurons=int(record["neurons"]),
            heads=int(record["heads"]),
            reason=record["reason"],
            parameters=tuple(record["parameters"]),
            causal=bool(record["causal"]),
        )


@dataclass(frozen=True)
class Axis:
    """The part of one axis of a product that neuron groups scale.

    Attributes:
        shares: (group name, fraction of the axis that is the group's), fractions sum to <= 1.
    """

    shares: tuple[tuple[str, float], ...] = ()

    def kept(self, keep_ratio: dict[str, float]) -> float:
        """Fraction of the axis left when group g keeps ``keep_ratio[g]`` (1 where absent)."""
        return 1.0 - sum(part * (1.0 - keep_ratio.get(group, 1.0)) for group, part in self.shares)


@dataclass(frozen=True)
class MacNode:
    """One multiply-add-bearing operation of the traced graph.

    Attributes:
        module: innermost module that ran it ("" for the model itself).
        op: ``linear``, ``conv``, ``depthwise``, ``qk``, ``av``, ``matmul``.
        macs: multiply-adds of the whole call (all batch rows).
        out: groups along the output channels.
        contraction: groups along the axis summed over (for ``depthwise``, equal to ``out`` and
            counted once: leave ``contraction`` empty).
    """

    module: str
    op: str
    macs: int
    out: Axis = Axis()
    contraction: Axis = Axis()

    def pruned(self, keep_ratio: dict[str, float]) -> float:
        """Multiply-adds left under these keep ratios."""
        return self.macs * self.out.kept(keep_ratio) * self.contraction.kept(keep_ratio)
