"""Whether the tokens of a hidden layer may choose experts for themselves: proven by running it."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from dynprune.example import Example
from dynprune.gate.instances import from_instances, to_instances
from dynprune.gate.layout import weight_layout
from dynprune.gate.linear import DynamicLinear
from dynprune.gate.plan import GroupPlan
from dynprune.gate.route import why_not_experts
from dynprune.gate.router import Grain
from dynprune.host.modes import at_inference
from dynprune.host.outputs import close
from dynprune.host.trial import trial

__all__ = ["has_channels_first", "settle_grains", "tokens_stay_apart"]

APART = "its tokens meet between its layers, so that each cannot choose for itself"


def settle_grains(
    model: nn.Module, plans: Sequence[GroupPlan], example: Example, wanted: Grain | None
) -> tuple[dict[str, Grain], dict[str, str]]:
    """Settle what chooses in each group, and say why some groups cannot have experts.

    Args:
        model: dense, or gated with nothing skipped; left as it is.
        plans: of mode ``compact``.
        example: a call of it.
        wanted: the grain for all; tokens where they can, else instances, where None.

    Returns:
        group name -> grain, and group name -> reason, of which each group has one.
    """
    grains: dict[str, Grain] = {}
    reasons: dict[str, str] = {}
    for plan in plans:
        name = plan.group.name
        why = None
        for grain in (wanted,) if wanted is not None else ("token", "instance"):
            found = why_not_experts(model, plan, grain)
            if found is None and grain == "token" and not tokens_stay_apart(model, plan, example):
                found = APART
            if found is None:
                grains[name] = grain
                break
            why = found
        else:
            reasons[name] = why or ""
    return grains, reasons


def tokens_stay_apart(model: nn.Module, plan: GroupPlan, example: Example) -> bool:
    """Whether each token's neurons reach the consumers by themselves: it is tried on a call.

    The neurons of every second token are changed at random where they are made; at the consumers
    those of all others must be what they were.
    """
    before = _hidden(model, plan, example, None)
    after = _hidden(model, plan, example, torch.Generator().manual_seed(0))
    if not before or len(before) != len(after) or any(len(x) < 2 for x in before):
        return False
    same = close([x[::2] for x in after], [x[::2] for x in before])
    return same and not any(
        torch.equal(a[1::2], b[1::2]) for a, b in zip(after, before, strict=True)
    )


def _hidden(
    model: nn.Module, plan: GroupPlan, example: Example, random: torch.Generator | None
) -> list[Tensor]:
    """Return what the consumers read in a call, tokens first: (T, B, neurons) of each."""
    seen: dict[str, Tensor] = {}

    def after(module: nn.Module, _args: Any, y: Tensor) -> Tensor:
        tokens = _tokens(module, y, plan)
        noise = torch.randn(tokens.shape, generator=random).to(tokens)
        noise[:, ::2] = 0.0
        last = y.movedim(1, -1) if has_channels_first(module) else y
        changed = from_instances(tokens + noise, last, plan.layout)
        return changed.movedim(-1, 1) if has_channels_first(module) else changed

    def before(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.setdefault(name, _tokens(module, args[0], plan).transpose(0, 1).clone())

    with at_inference(model), trial(model), ExitStack() as stack:
        for channels in plan.group.producers if random is not None else ():
            producer = model.get_submodule(channels.module)
            stack.callback(producer.register_forward_hook(after).remove)
        for channels in plan.group.consumers:
            consumer = model.get_submodule(channels.module)

            def hook(module: nn.Module, args: Any, name: str = channels.module) -> None:
                before(name, module, args)

            stack.callback(consumer.register_forward_pre_hook(hook).remove)
        example.run(model)
    return list(seen.values())


def has_channels_first(module: nn.Module) -> bool:
    """Whether a linear-like layer, gated or not, has its channels on axis 1."""
    layout = module.layout if isinstance(module, DynamicLinear) else weight_layout(module)
    return layout == "pointwise"


def _tokens(module: nn.Module, x: Tensor, plan: GroupPlan) -> Tensor:
    if has_channels_first(module):
        x = x.movedim(1, -1)
    return to_instances(x, x.shape[plan.layout.axis], plan.layout)
