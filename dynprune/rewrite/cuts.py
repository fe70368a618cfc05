"""Layers that keep some channels of an axis, and fixed groups, which are made of such layers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from dynprune.errors import UsageError
from dynprune.rewrite.record import Rewrite

__all__ = [
    "CHOOSE_EXPERTS",
    "FIX_NEURONS",
    "PUT_EXPERTS",
    "Cut",
    "Side",
    "add_bias",
    "can_narrow_layer",
    "choice_of_experts",
    "expert_groups",
    "fix_again",
    "fixed_groups",
    "is_torchs_own",
    "keeping",
    "length",
    "narrow_layers",
    "refuse_fixed",
]

FIX_NEURONS = "fix-neurons"
PUT_EXPERTS = "put-experts"
CHOOSE_EXPERTS = "choose-experts"

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


def is_torchs_own(module: nn.Module, side: Side) -> bool:
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


def fixed_groups(records: Iterable[Rewrite]) -> list[Mapping[str, Any]]:
    """Return the groups that records fixed: ``name``, ``kind``, ``neurons`` and those ``kept``."""
    made = [record for record in records if record.name == FIX_NEURONS and record.reason is None]
    return [group for record in made for group in record.details["groups"]]


def expert_groups(records: Iterable[Rewrite]) -> list[Mapping[str, Any]]:
    """Return the groups that records gave experts: ``name``, ``neurons``, ``sets`` and others."""
    made = [record for record in records if record.name == PUT_EXPERTS and record.reason is None]
    return [group for record in made for group in record.details["groups"]]


def choice_of_experts(records: Iterable[Rewrite]) -> list[Mapping[str, Any]]:
    """Return what each group was given, and why: see `dynprune.planning.expert_choice.Bought`."""
    return [group for r in records if r.name == CHOOSE_EXPERTS for group in r.details["groups"]]


def refuse_fixed(records: Iterable[Rewrite]) -> None:
    """Refuse the way back to a dense model where groups were fixed, or have experts.

    Raises:
        UsageError: they were, or have.
    """
    records = list(records)
    if experts := len(expert_groups(records)):
        raise UsageError(
            f"the layers of {experts} groups of this model were replaced by experts for good, so "
            "it does not hold its dense form; load the dense model that it was made from"
        )
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


def fix_again(model: nn.Module, record: Rewrite) -> Callable[[], None]:
    """Check that a record of fixed groups fits, and return what narrows the layers in place.

    Raises:
        ValueError: it does not fit.
    """
    details = record.details
    cuts = [
        Cut(str(x["module"]), x["side"], tuple(range(int(x["size"]))), bool(x["transposed"]))
        for x in details["layers"]
    ]
    biased = [model.get_submodule(name) for name in details["biases"]]
    if any("bias" not in module._parameters for module in biased):
        raise ValueError("a layer that is to get a bias has no place for one")
    widths = [
        _width(model, str(x["module"]), str(x["attribute"]), x["value"]) for x in details["heads"]
    ]
    narrow_layers(model, cuts)()  # raises where a layer does not fit; then as before

    def again() -> None:
        narrow_layers(model, cuts)
        for module in biased:
            add_bias(module)
        for host, attribute, value in widths:
            setattr(host, attribute, value)

    return again
