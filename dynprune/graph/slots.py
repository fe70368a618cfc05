"""Where the neurons of an attention group stand in the products that sum over them or mix them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynprune.graph.propagation import Attention, Ids

__all__ = ["HeadSlots", "slots_of"]


@dataclass(frozen=True, eq=False)
class HeadSlots:
    """The slots of every head, in an attention's products, that belong to the neurons of a group.

    Every head has its neurons at the same slots.

    Attributes:
        host: module within whose call all products run ("" for the model).
        products: products of two activations in one call of the host.
        places: which of them meet these neurons.
        width: slots of a head.
        index: (neurons of a head, m) int64 slots of each neuron; m is 2 where rotary positions
            turn two channels into each other.
        heads: the group's head that each head of the products reads: several the same where keys
            and values are shared.
    """

    host: str
    products: int
    places: tuple[int, ...]
    width: int
    index: Tensor
    heads: tuple[int, ...]

    def __post_init__(self) -> None:
        rows, columns = self.index.shape
        if not 0 < rows * columns <= self.width:
            raise ValueError(f"{rows} x {columns} slots in a head of {self.width}")
        if not 0 <= int(self.index.min()) <= int(self.index.max()) < self.width:
            raise ValueError(f"slots beyond a head of {self.width}")
        if not all(0 <= place < self.products for place in self.places):
            raise ValueError(f"places {self.places} among {self.products} products")

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form."""
        return {
            "host": self.host,
            "products": self.products,
            "places": list(self.places),
            "width": self.width,
            "index": self.index.tolist(),
            "heads": list(self.heads),
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "HeadSlots":
        """Read what `to_json` returned.

        Raises:
            KeyError, TypeError, ValueError: where it says what cannot be.
        """
        index = torch.tensor(record["index"], dtype=torch.int64)
        if index.dim() != 2:
            raise ValueError("slots are no table")
        return cls(
            str(record["host"]),
            int(record["products"]),
            tuple(int(place) for place in record["places"]),
            int(record["width"]),
            index,
            tuple(int(head) for head in record["heads"]),
        )


def slots_of(
    attentions: Sequence[Attention], modules: Sequence[str], root: Ids, keys: Ids, heads: int
) -> HeadSlots | None:
    """Find the slots of a group's neurons, or None where products of these heads differ.

    Args:
        attentions: all products of activations, in the order in which they run.
        modules: layers that make the neurons.
        root: neuron of each id.
        keys: the neurons of the group, in head-major order.
        heads: they fall into.
    """
    rank = {key: place for place, key in enumerate(keys.tolist())}
    per_head = len(keys) // heads
    found: tuple[Ids, tuple[int, ...]] | None = None
    meeting = []
    for place, attention in enumerate(attentions):
        for table in (attention.scored, attention.valued):
            if table is None or not np.isin(root[table], keys).any():
                continue
            pattern = None if not attention.plain else _pattern(root[table], rank, per_head)
            if pattern is None or (found is not None and not _alike(found, pattern)):
                return None
            found = pattern
            meeting.append(place)
    if found is None or set(found[1]) != set(range(heads)):
        return None
    slots, read = found
    host = _shared([*(attentions[place].module for place in meeting), *map(_parent, modules)])
    inside = [p for p, attention in enumerate(attentions) if _within(attention.module, host)]
    places = tuple(inside.index(place) for place in meeting)
    order = np.argsort(slots, kind="stable")
    order = order[slots[order] >= 0]
    index = torch.from_numpy(order.reshape(per_head, -1))
    return HeadSlots(host, len(inside), places, len(slots), index, read)


def _pattern(table: Ids, rank: dict[int, int], per_head: int) -> tuple[Ids, tuple[int, ...]] | None:
    """Return the neuron of a head at each slot (-1 for none of the group), and each row's head."""
    rows = table[: _period(table)]
    ranks = np.array([[rank.get(key, -1) for key in row] for row in rows.tolist()])
    inside = ranks >= 0
    if not (inside == inside[0]).all() or not inside[0].any():
        return None
    owners = ranks[:, inside[0]] // per_head
    if not (owners == owners[:, :1]).all():
        return None
    local = np.where(inside, ranks % per_head, -1)
    counts = np.bincount(local[0][inside[0]], minlength=per_head)
    if not (local == local[0]).all() or len(set(counts.tolist())) > 1:
        return None
    return local[0], tuple(owners[:, 0].tolist())


def _period(table: Ids) -> int:
    """Return after how many rows the heads of a table repeat."""
    count = len(table)
    for period in range(1, count):
        if count % period == 0 and (table == np.tile(table[:period], (count // period, 1))).all():
            return period
    return count


def _alike(one: tuple[Ids, tuple[int, ...]], other: tuple[Ids, tuple[int, ...]]) -> bool:
    return np.array_equal(one[0], other[0]) and one[1] == other[1]


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _within(name: str, host: str) -> bool:
    return not host or name == host or name.startswith(f"{host}.")


def _shared(names: Sequence[str]) -> str:
    """Return the innermost module that holds all of these."""
    host = names[0]
    while not all(_within(name, host) for name in names):
        host = _parent(host)
    return host
