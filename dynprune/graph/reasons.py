"""Why a neuron group cannot be gated, in words for the user."""

from dataclasses import dataclass, field

import torch

from dynprune.graph.neurons import NeuronGroup
from dynprune.graph.propagation import Layer
from dynprune.graph.rules.pointwise import ADDED
from dynprune.graph.walk import RETURNED

__all__ = ["History", "is_shown", "reasons_of"]

_NORMALISED = {
    "a LayerNorm mixes its channels",
    "a GroupNorm mixes its channels",
    "a RMSNorm mixes its channels",
    "the model averages its channels",
}


@dataclass
class History:
    """What happens to the neurons of one group, each list in the order of the graph.

    Attributes:
        made: layers whose output channels they are.
        read: layers that sum over them.
        carried: modules that pass them on channel by channel.
        parameters: per-channel parameters outside such modules.
        reasons: what was found on the way that forbids gating.
        shifts: operations under which zero does not stay zero.
        scored: whether they are summed over in a QK^T.
        valued: whether attention weights mix them.
        summed: whether an addition joins the outputs of several layers in them.
    """

    made: list[Layer] = field(default_factory=list)
    read: list[Layer] = field(default_factory=list)
    carried: list[str] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    shifts: list[str] = field(default_factory=list)
    scored: bool = False
    valued: bool = False
    summed: bool = False

    def add(self, event: str, what: object) -> None:
        """Note one event, in place."""
        known = getattr(self, event)
        if isinstance(known, bool):
            setattr(self, event, True)
        elif what not in known:
            known.append(what)


def is_shown(history: History) -> bool:
    """Whether a user would call it a group: made by linear layers, and read or met by others.

    Neurons that something else swallows are shown with the reason. A residual stream is not where
    a norm or a wide convolution makes it hopeless anyway, nor where the model's own input enters it
    and its output leaves it, nor is an output.
    """
    residual = history.summed or ADDED in history.reasons
    normalised = bool(_NORMALISED.intersection(history.reasons))
    passing = {ADDED, RETURNED}.issubset(history.reasons)
    hopeless = normalised or passing or not all(layer.is_linear for layer in history.made)
    if not any(layer.is_linear for layer in history.made) or (residual and hopeless):
        return False
    if history.read or history.scored or history.valued:
        return True
    return bool(history.reasons) and not residual and RETURNED not in history.reasons


def reasons_of(group: NeuronGroup, history: History, uneven: str | None) -> list[str]:
    """Every reason against gating a group, the most telling first.

    Args:
        group: the group; its own ``reason`` is not looked at.
        history: of its neurons.
        uneven: what is wrong with its attention heads, if anything is.
    """
    reasons = list(history.reasons)
    reasons += [fault for layer in (*history.made, *history.read) for fault in layer.faults]
    reasons += [
        f"{layer.module} both makes and reads these neurons"
        for layer in history.made
        if layer in history.read
    ]
    if history.summed:
        makers = ", ".join(layer.module for layer in history.made[:3])
        reasons.append(f"an addition joins the outputs of several layers ({makers})")
    if uneven is not None:
        reasons.append(uneven)
    if group.kind == "qk":
        if history.read:
            reasons.append(f"queries or keys that {history.read[0].module} reads as well")
        if history.valued:
            reasons.append("queries or keys that are values as well")
        if shifts := _shifts_unhidden(group, history):
            what = shifts[0]
            reasons.append(f"a skipped query or key would not stay zero: {what}")
    if group.neurons < 2:
        reasons.append("its channels are all tied into one neuron")
    return reasons + _order_reasons(group)


def _shifts_unhidden(group: NeuronGroup, history: History) -> list[str]:
    """Return what moves zero away from skipped queries and keys, with no layer to hide them behind.

    Batch norms and depthwise convolutions behind all queries and all keys are such layers.
    """
    carried = sum(channels.index.shape[1] for channels in group.carriers)
    made = sum(channels.index.shape[1] for channels in group.producers)
    hidden = {f"the bias of {module}" for module in history.carried} if carried == made else set()
    return [what for what in history.shifts if what not in hidden]


def _order_reasons(group: NeuronGroup) -> list[str]:
    """Refuse neurons that stand in another order where they are read than where they are made."""
    order = torch.argsort(group.producers[0].index[:, 0])
    for channels in (*group.producers, *group.carriers, *group.consumers):
        if bool((channels.index[order].diff(dim=0) < 0).any()):
            maker = group.producers[0].module
            return [f"its channels stand in another order at {channels.module} than at {maker}"]
    return []
