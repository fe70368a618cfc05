"""Take neurons out of a model for good: narrower layers, and the way to build them again."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dynprune.graph.neurons import NeuronGroup
from dynprune.rewrite.cuts import Cut, Side, is_torchs_own, length, narrow_layers
from dynprune.rewrite.made import note_undo
from dynprune.rewrite.record import Rewrite

__all__ = ["DROP_NEURONS", "can_narrow", "drop_neurons", "narrow_again", "why_narrow"]

DROP_NEURONS = "drop-neurons"

_SIZES = ("in_features", "out_features", "in_channels", "out_channels", "groups", "num_features")


def can_narrow(model: nn.Module, group: NeuronGroup) -> bool:
    """Whether a group's neurons can be taken out of all of its layers.

    They can where they are whole axes of linears, 1x1 and depthwise convolutions and batch norms;
    heads cannot, since each must keep its width.
    """
    places = (*group.producers, *group.carriers, *group.consumers)
    return (
        group.heads == 0
        and group.reason is None
        and not group.parameters
        and bool(group.consumers)
        and all(channels.is_whole for channels in places)
        and all(is_torchs_own(model.get_submodule(m), side) for m, side in _sides(group))
    )


@torch.no_grad()
def drop_neurons(
    model: nn.Module, group: NeuronGroup, dead: Sequence[int], mean: Tensor | None = None
) -> Rewrite:
    r"""Take neurons out of every layer of their group, in place; `undo` puts them back.

    .. math:: b_2 \leftarrow b_2 + W_2^{dead} \mu^{dead}

    Args:
        model: dense.
        group: one that `can_narrow`.
        dead: neurons that go.
        mean: (neurons,) value at which the neurons stood at the consumers; zero where None.

    Returns:
        The record.
    """
    kept = [neuron for neuron in range(group.neurons) if neuron not in set(dead)]
    whole = [_Whole.of(model.get_submodule(name), side, kept) for name, side in _sides(group)]
    note_undo(model, partial(_widen, whole))
    if mean is not None:
        for channels in group.consumers:
            consumer: Any = model.get_submodule(channels.module)
            if consumer.bias is not None:
                columns = consumer.weight.flatten(1)[:, list(dead)]
                shifted = consumer.bias + columns @ mean[list(dead)].to(columns)
                for part in whole:
                    if part.module is consumer:
                        part.shifted = shifted.clone()
                trains = consumer.bias.requires_grad
                consumer.bias = nn.Parameter(shifted, requires_grad=trains)
    details = {"sides": [list(pair) for pair in _sides(group)], "dead": sorted(dead)}
    _narrow(model, details)
    return Rewrite(DROP_NEURONS, group.name, details, None)


@dataclass
class _Whole:
    """A layer as it was before it was narrowed.

    Attributes:
        module: the layer.
        axis: of its weight, along which it was narrowed.
        kept: the neurons that stayed.
        attributes: its sizes.
        parameters: its parameters; the values of the neurons that went are in them.
        buffers: its buffers, likewise.
        shifted: its bias just after a mean went into it.
    """

    module: nn.Module
    axis: int
    kept: list[int]
    attributes: dict[str, Any]
    parameters: dict[str, nn.Parameter | None]
    buffers: dict[str, Tensor | None]
    shifted: Tensor | None = None

    @classmethod
    def of(cls, module: nn.Module, side: str, kept: list[int]) -> "_Whole":
        """Keep what a layer is before it is narrowed on one side."""
        sizes = {name: vars(module)[name] for name in _SIZES if name in vars(module)}
        parameters, buffers = dict(module._parameters), dict(module._buffers)
        return cls(module, 0 if side == "out" else 1, kept, sizes, parameters, buffers)

    def put_back(self) -> None:
        """Give the layer its neurons back, in place; those that stayed are as they are now."""
        module = self.module
        for name, old in self.parameters.items():
            new = module._parameters.get(name)
            if old is not None and new is not None and new is not old:
                self._carry_over(old, new)
        for name, before in self.buffers.items():
            now = module._buffers.get(name)
            if before is not None and now is not None and now.shape != before.shape:
                before = before.to(now).index_copy(0, _places(self.kept, now), now)
            self.buffers[name] = before if before is None or now is None else before.to(now)
        vars(module).update(self.attributes)
        module._parameters.update(self.parameters)
        module._buffers.update(self.buffers)

    def _carry_over(self, old: nn.Parameter, new: nn.Parameter) -> None:
        """Give a whole parameter what its narrow one has learnt since, in place."""
        old.data = old.data.to(new)
        old.requires_grad_(new.requires_grad)
        if new.shape == old.shape:  # a bias, into which a mean went
            if self.shifted is not None and not torch.equal(new, self.shifted.to(new)):
                old.data += new - self.shifted.to(new)
        elif not torch.equal(new, old.data.index_select(self.axis, _places(self.kept, new))):
            old.data.index_copy_(self.axis, _places(self.kept, new), new.detach())


@torch.no_grad()
def _widen(whole: Sequence[_Whole], _: nn.Module) -> None:
    """Put the neurons back into every layer of a group, in place."""
    for part in whole:
        part.put_back()


def _places(kept: list[int], like: Tensor) -> Tensor:
    return torch.tensor(kept, device=like.device)


def narrow_again(model: nn.Module, record: Rewrite) -> Callable[[], None]:
    """Check that a record fits, and give the function that narrows the layers in place."""
    for name, side in record.details["sides"]:
        if not is_torchs_own(model.get_submodule(name), side):
            raise ValueError(f"{name} has no {side} channels to take out")
    return lambda: _narrow(model, record.details)


def why_narrow(rewrites: Iterable[Rewrite]) -> str | None:
    """Say which neurons records tell of that went for good, or None."""
    gone = {record.module: len(record.details["dead"]) for record in rewrites if _made(record)}
    names = ", ".join(list(gone)[:3]) + (f" and {len(gone) - 3} more" if len(gone) > 3 else "")
    return f"{sum(gone.values())} neurons of {names}" if gone else None


def _made(record: Rewrite) -> bool:
    return record.name == DROP_NEURONS and record.reason is None


def _narrow(model: nn.Module, details: Mapping[str, Any]) -> None:
    for name, side in details["sides"]:
        size = length(model.get_submodule(name), Cut(name, side, ()))
        dead = set(details["dead"])
        kept = tuple(neuron for neuron in range(size) if neuron not in dead)
        narrow_layers(model, [Cut(name, side, kept)])


def _sides(group: NeuronGroup) -> list[tuple[str, Side]]:
    """Return every layer of the group, with the side on which it holds the neurons."""
    return [
        *((channels.module, "out") for channels in (*group.producers, *group.carriers)),
        *((channels.module, "in") for channels in group.consumers),
    ]
