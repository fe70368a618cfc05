"""AdamW with the field's parameter groups, and its state as named tensors."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynprune.errors import InputError

__all__ = ["AdamW", "build", "load_state", "set_learning_rate", "state_tensors"]


@dataclass(frozen=True)
class AdamW:
    """Settings of the optimizer.

    Attributes:
        lr: peak learning rate.
        weight_decay: decoupled decay of matrices and kernels; biases, norms and other parameters
            of at most one axis have none.
        betas: decays of the first and second moment.
        eps: added to the second moment's root.
        gate_lr_factor: learning rate of the gates' parameters as a multiple of ``lr``.
    """

    lr: float = 6e-5
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    gate_lr_factor: float = 1.0


def build(
    model: nn.Module, settings: AdamW, gate_parameters: Collection[nn.Parameter] = ()
) -> torch.optim.AdamW:
    """Make the optimizer of all parameters of ``model`` that require a gradient.

    Each group carries ``names`` (its parameters' names) and ``peak`` (its peak learning rate).
    """
    gated = {id(parameter) for parameter in gate_parameters}
    groups: dict[tuple[bool, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (id(parameter) in gated, parameter.dim() > 1)
            groups.setdefault(key, []).append((name, parameter))
    return torch.optim.AdamW(
        [
            {
                "params": [parameter for _, parameter in members],
                "names": [name for name, _ in members],
                "peak": settings.lr * (settings.gate_lr_factor if is_gate else 1.0),
                "weight_decay": settings.weight_decay if decays else 0.0,
            }
            for (is_gate, decays), members in groups.items()
        ],
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to ``factor`` of its peak, in place."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as ``{"KEY:PARAMETER": tensor}``."""
    return {
        f"{key}:{name}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`state_tensors` returned, in place.

    Raises:
        InputError: if a tensor belongs to no parameter of the optimizer.
    """
    parameters = {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }
    optimizer.state.clear()
    for full_name, tensor in tensors.items():
        key, _, name = full_name.partition(":")
        if name not in parameters:
            raise InputError(f"the optimizer's state names {name!r}, which the model has not")
        parameter = parameters[name]
        if tensor.dim():  # a moment: in the parameter's own memory format
            tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
        optimizer.state[parameter][key] = tensor.detach().clone()
