"""Find the neurons that never matter, type III, and take them out before anything is gated."""

import logging
from collections.abc import Sequence

import torch
from torch import nn

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.gate import GateConfig, gate_model, gates, remove
from dynprune.graph.neurons import NeuronGroup
from dynprune.measure.moments import measure
from dynprune.measure.neurons import PERCENTILES, neuron_types
from dynprune.rewrite import Rewrite
from dynprune.rewrite.narrow import can_narrow, drop_neurons

__all__ = ["drop_dead"]

logger = logging.getLogger(__name__)

DEAD = 2  # what `neuron_types` calls type III


def drop_dead(
    model: nn.Module,
    example: Example,
    groups: Sequence[NeuronGroup],
    calls: Sequence[Example],
    *,
    align: int = 8,
) -> list[Rewrite]:
    """Take the neurons of type III out of every hidden layer, in place.

    Their mean goes into the bias of what read them. As many go as leave a multiple of ``align``,
    the least useful first.

    Args:
        model: dense.
        example: a call of it.
        groups: found in it; those that are no whole hidden layers are left alone.
        calls: inputs that decide, see `neuron_types`.
        align: neurons go in multiples of this.

    Returns:
        A record for every layer narrowed; `undo` puts all of them back.

    Raises:
        UsageError: without inputs there is no telling.

    Source: the types are those of DynaSegFormer, arXiv 2111.09499, Fig. 2; the mean is that of
    Variance-Based Pruning, arXiv 2507.12988.
    """
    if not calls:
        raise UsageError("dead neurons are found by what they do on data, and there is none")
    hidden = {group.name: group for group in groups if can_narrow(model, group)}
    configs = {name: GateConfig(order="fixed", align=1) for name in hidden}
    gate_model(model, example, list(hidden.values()), configs)
    try:
        found = {}
        for name, moments in measure(model, calls).items():
            mean = moments.first.mean(0)
            found[name] = (
                moments.importance(mean if gates(model)[name].mean is not None else None),
                mean,
            )
    finally:
        remove(model, untrained=True)
    records = []
    for name, (importance, mean) in found.items():
        shares = torch.tensor([PERCENTILES[0] / 100, 0.5, PERCENTILES[1] / 100])
        low, median, high = importance.quantile(shares.to(importance), dim=0)
        dead = (neuron_types(median, high - low) == DEAD).nonzero().flatten()
        least = dead[median[dead].argsort()][: len(dead) // align * align].tolist()
        if least:
            records.append(drop_neurons(model, hidden[name], least, mean))
        logger.debug("%s: %d of %d neurons removed", name, len(least), len(median))
    return records
