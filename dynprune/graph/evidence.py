"""What changing the first and the last tokens shows of every layer and output of a model."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dynprune.graph.influence import Order, Parts, order_in, order_of
from dynprune.graph.observed import Changes, rows_of_output

__all__ = ["Evidence", "all_mixed", "evidence"]

#: Rows that changes of the first and of the last tokens reach; None where shapes changed.
_Pair = tuple[Tensor | None, Tensor | None]


@dataclass
class Evidence:
    """What changing the first and the last tokens of a sequence showed.

    Attributes:
        inputs: module -> orders of time in its input, one for each call, and one for all of them
            where each is a row; the modules in the order of running.
        outputs: places of outputs -> order of time in each, or in all of them as rows.
    """

    inputs: dict[str, list[Order]]
    outputs: dict[tuple[int, ...], Order]


def all_mixed(late: Changes, last: Tensor) -> bool:
    """Whether the last tokens reach all of every layer but those that run before tokens meet."""
    met = False
    for calls in late.inputs.values():
        for rows in calls:
            if rows is None:
                return False
            reached = rows.flatten().nonzero().flatten()
            if len(reached) == rows.numel():
                met |= len(reached) > 1
            elif met or not torch.equal(reached, last):
                return False
    return met


def evidence(early: Changes, late: Changes, parts: Parts) -> Evidence:
    """Say of every layer's input and of the outputs what order of time they show."""
    inputs = {
        name: _orders_of(list(zip(early.inputs[name], lasts, strict=True)), parts)
        for name, lasts in late.inputs.items()
    }
    alike: dict[torch.Size, list[int]] = defaultdict(list)
    pairs = list(zip(early.outputs, late.outputs, strict=True))
    rows: list[_Pair] = [(None, None)] * len(pairs)
    for place, (first, last) in enumerate(pairs):
        if first is not None and last is not None:
            alike[first.shape].append(place)
            length = parts.length
            rows[place] = (rows_of_output(first, length), rows_of_output(last, length))
    outputs: dict[tuple[int, ...], Order] = {}
    for places in alike.values():
        orders = _orders_of([rows[place] for place in places], parts)
        keys = [tuple(places)] if len(orders) == 1 else [(place,) for place in places]
        outputs.update(zip(keys, orders, strict=True))
    return Evidence(inputs, outputs)


def _orders_of(pairs: Sequence[_Pair], parts: Parts) -> list[Order]:
    """Say what order of time the calls of a layer, or outputs of one shape, show."""
    known = [(first, last) for first, last in pairs if first is not None and last is not None]
    if len(known) > 1 and all(last.numel() == 1 for _, last in known):
        # A loop over the tokens makes a row in each of its rounds.
        firsts, lasts = (torch.stack(side).flatten() for side in zip(*known, strict=True))
        return [order_of(firsts, lasts, parts)]
    return [order_in(first, last, parts) for first, last in known]
