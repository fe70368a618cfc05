"""Take neurons out of a model for good: narrower layers, and the way to build them again."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from dynprune.errors import UsageError
from dynprune.graph.neurons import NeuronGroup
from dynprune.rewrite.record import Rewrite

__all__ = [
    "DROP_NEURONS",
    "FIX_NEURONS",
    "PERMANENT",
    "Cut",
    "Side",
    "add_bias",
    "can_narrow",
    "can_narrow_layer",
    "drop_neurons",
    "fixed_groups",
    "keeping",
    "length",
    "narrow_again",
    "narrow_layers",
    "refuse_removed",
]

DROP_NEURONS = "drop-neurons"
FIX_NEURONS = "fix-neurons"
PERMANENT = (DROP_NEURONS, FIX_NEURONS)
"""Changes that cannot be taken back from the model alone: it no longer has what they removed."""

Side = Literal["out", "in"]

_SIZES: Mapping[Side, tuple[str, ...]] = {
    "out": ("out_features", "out_channels", "nf"),
    "in": ("in_features", "in_channels", "nx"),
}
"""Names under which layers keep the length of an axis."""


@dataclass(frozen=True)
class Cut:
    """The channels that one axis of one layer keeps.

    Attributes:
        module: fully qualified name.
        side: the axis, ``out`` for what the layer makes or passes on, ``in`` for what it reads.
        kept: positions along the axis, ascending.
        transposed: whether the layer stores its weight as (in, out).
    """

    module: str
    side: Side
    kept: tuple[int, ...]
    transposed: bool = False


def can_narrow(model: nn.Module, group: NeuronGroup) -> bool:
    """Whether a group's neurons can be taken out of all of its layers without running it.

    They can where they are whole axes of linears, 1x1 and depthwise convolutions and batch norms.
    Heads cannot: whether code follows narrow heads is seen only by running it.
    """
    places = (*group.producers, *group.carriers, *group.consumers)
    return (
        group.heads == 0
        and group.reason is None
        and not group.parameters
        and bool(group.consumers)
        and all(channels.is_whole for channels in places)
        and all(_is_known(model.get_submodule(m), side) for m, side in _sides(group))
    )


def _is_known(module: nn.Module, side: Side) -> bool:
    """Whether a layer is one of torch's own, that computes what its weight and bias say."""
    own = type(module) is nn.Linear or isinstance(module, _ConvNd | _BatchNorm)
    depthwise = isinstance(module, _ConvNd) and module.groups > 1
    return own and can_narrow_layer(module, side) and not (depthwise and side == "in")


def can_narrow_layer(module: nn.Module, side: Side) -> bool:
    """Whether `narrow_layers` knows how a layer keeps this axis."""
    if isinstance(module, _BatchNorm):
        return side == "out"
    if isinstance(module, _ConvNd):
        return not module.transposed and (module.groups == 1 or _is_depthwise(module))
    return _is_linear(module)


@torch.no_grad()
def drop_neurons(
    model: nn.Module, group: NeuronGroup, dead: Sequence[int], mean: Tensor | None = None
) -> tuple[Rewrite, Callable[[], None]]:
    r"""Take neurons out of every layer of their group, in place.

    .. math:: b_2 \leftarrow b_2 + W_2^{dead} \mu^{dead}

    Args:
        model: dense.
        group: one that `can_narrow`.
        dead: neurons that go.
        mean: (neurons,) value at which the neurons stood at the consumers; zero where None.

    Returns:
        The record, and a function that puts the layers back as they were.
    """
    names = [name for name, _ in _sides(group)]
    restore = keeping(map(model.get_submodule, names))
    if mean is not None:
        for channels in group.consumers:
            consumer: Any = model.get_submodule(channels.module)
            if consumer.bias is not None:
                columns = consumer.weight.flatten(1)[:, list(dead)]
                shift = columns @ mean[list(dead)].to(columns)
                consumer.bias = nn.Parameter(consumer.bias + shift)
    details = {"sides": [list(pair) for pair in _sides(group)], "dead": sorted(dead)}
    narrow_layers(model, _cuts_of_dead(model, details))
    return Rewrite(DROP_NEURONS, group.name, details, None), restore


@torch.no_grad()
def narrow_layers(model: nn.Module, cuts: Sequence[Cut]) -> Callable[[], None]:
    """Keep the named channels of every layer and no others, in place.

    Args:
        model: that holds the layers; each axis of a layer is named once.
        cuts: what each axis keeps.

    Returns:
        A function that puts the layers back as they were.

    Raises:
        ValueError: a layer or an axis is none that is known; the model is untouched.
    """
    for cut in cuts:
        module = model.get_submodule(cut.module)
        if cut.side not in get_args(Side) or not can_narrow_layer(module, cut.side):
            raise ValueError(f"{cut.module} has no {cut.side} channels to take out")
        size = length(module, cut)
        if not cut.kept or not 0 <= min(cut.kept) <= max(cut.kept) < size:
            raise ValueError(f"{cut.module} has {size} {cut.side} channels, not those to be kept")
    restore = keeping(model.get_submodule(cut.module) for cut in cuts)
    for cut in cuts:
        _narrow_layer(model.get_submodule(cut.module), cut)
    return restore


def keeping(modules: Iterable[nn.Module]) -> Callable[[], None]:
    """Return a function that gives layers back the attributes and tensors that they have now."""
    before = [(m, dict(vars(m)), dict(m._parameters), dict(m._buffers)) for m in modules]

    def restore() -> None:
        for module, attributes, parameters, buffers in before:
            vars(module).update(attributes)
            module._parameters.update(parameters)
            module._buffers.update(buffers)

    return restore


def narrow_again(model: nn.Module, record: Rewrite) -> Callable[[], None]:
    """Check that a record fits, and return the function that narrows the layers in place.

    Raises:
        ValueError: it does not fit.
    """
    details = record.details
    if record.name == DROP_NEURONS:
        cuts = _cuts_of_dead(model, details)
    else:
        cuts = [
            Cut(str(x["module"]), x["side"], tuple(range(int(x["size"]))), bool(x["transposed"]))
            for x in details["layers"]
        ]
    biased = [model.get_submodule(name) for name in details.get("biases", ())]
    if any("bias" not in module._parameters for module in biased):
        raise ValueError("a layer that is to get a bias has no place for one")
    widths = [
        _width(model, str(x["module"]), str(x["attribute"]), x["value"])
        for x in details.get("heads", ())
    ]
    narrow_layers(model, cuts)()  # raises where a layer does not fit; then as before

    def again() -> None:
        narrow_layers(model, cuts)
        for module in biased:
            add_bias(module)
        for host, attribute, value in widths:
            setattr(host, attribute, value)

    return again


def fixed_groups(records: Iterable[Rewrite]) -> list[Mapping[str, Any]]:
    """Return the groups that records fixed: ``name``, ``kind``, ``neurons`` and those ``kept``."""
    made = [record for record in records if record.name == FIX_NEURONS and record.reason is None]
    return [group for record in made for group in record.details["groups"]]


def refuse_removed(records: Iterable[Rewrite]) -> None:
    """Refuse the way back to a dense model where groups were fixed.

    Raises:
        UsageError: they were.
    """
    count = len(fixed_groups(records))
    if not count:
        return
    raise UsageError(
        f"neurons of {count} groups were removed from this model for good, so it does not hold its "
        "dense form; load the dense model that it was made from"
    )


def add_bias(module: nn.Module) -> None:
    """Give a layer that has none a bias of zeros, in place."""
    weight = module.get_parameter("weight")
    if module._parameters.get("bias") is None:
        zeros = torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device)
        module.bias = nn.Parameter(zeros, requires_grad=weight.requires_grad)


def _width(model: nn.Module, name: str, attribute: str, value: int) -> tuple[nn.Module, str, int]:
    host = model.get_submodule(name)
    present = vars(host).get(attribute)
    if type(present) is not int or type(value) is not int or not 0 < value <= present:
        raise ValueError(f"{name}.{attribute} is {present!r}, which cannot become {value!r}")
    return host, attribute, value


def _cuts_of_dead(model: nn.Module, details: Mapping[str, Any]) -> list[Cut]:
    dead = {int(neuron) for neuron in details["dead"]}
    cuts = []
    for name, side in details["sides"]:
        module = model.get_submodule(name)
        if side not in get_args(Side) or not can_narrow_layer(module, side):
            raise ValueError(f"{name} has no {side} channels to take out")
        size = length(module, Cut(name, side, ()))
        kept = tuple(position for position in range(size) if position not in dead)
        cuts.append(Cut(name, side, kept))
    return cuts


def _sides(group: NeuronGroup) -> list[tuple[str, Side]]:
    """Return every layer of the group, with the side on which it holds the neurons."""
    return [
        *((channels.module, "out") for channels in (*group.producers, *group.carriers)),
        *((channels.module, "in") for channels in group.consumers),
    ]


def _is_depthwise(module: _ConvNd) -> bool:
    return module.groups == module.in_channels == module.out_channels


def _is_linear(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() == 2 and not list(module.children())


def _axis(module: nn.Module, cut: Cut) -> int:
    """Return the axis of a layer's weight that a cut shortens."""
    if isinstance(module, _BatchNorm) or (isinstance(module, _ConvNd) and module.groups > 1):
        return 0
    return int((cut.side == "in") != cut.transposed)


def length(module: nn.Module, cut: Cut) -> int:
    """Return how many channels an axis of a layer has; ``cut.kept`` does not matter."""
    if isinstance(module, _BatchNorm):
        return module.num_features
    return module.get_parameter("weight").shape[_axis(module, cut)]


def _narrow_layer(module: nn.Module, cut: Cut) -> None:
    size = length(module, cut)
    index = torch.tensor(cut.kept)
    if isinstance(module, _BatchNorm):
        names: tuple[str, ...] = ("num_features",)
        _slice(module, ("weight", "bias", "running_mean", "running_var"), 0, index)
    elif isinstance(module, _ConvNd) and module.groups > 1:
        names = ("out_channels", "in_channels", "groups")
        _slice(module, ("weight", "bias"), 0, index)
    else:
        names = _SIZES[cut.side]
        _slice(module, ("weight",), _axis(module, cut), index)
        if cut.side == "out":
            _slice(module, ("bias",), 0, index)
    for name in names:
        if vars(module).get(name) == size:
            setattr(module, name, len(cut.kept))


def _slice(module: nn.Module, names: Sequence[str], axis: int, index: Tensor) -> None:
    for name in names:
        tensor = getattr(module, name, None)
        if not isinstance(tensor, Tensor):
            continue
        new = tensor.detach().index_select(axis, index.to(tensor.device))
        if tensor.dim() == 4 and not tensor.is_contiguous():
            new = new.contiguous(memory_format=torch.channels_last)
        if isinstance(tensor, nn.Parameter):
            module._parameters[name] = nn.Parameter(new, requires_grad=tensor.requires_grad)
        else:
            module._buffers[name] = new
