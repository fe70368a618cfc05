"""Make experts without training: clusters of inputs, a neuron set and a consumer for each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.gate.call import Scope
from dynprune.gate.inject import attached, gates, is_gated, whole_group_modules
from dynprune.gate.instances import to_instances
from dynprune.gate.layout import weight_layout
from dynprune.gate.linear import DynamicLinear
from dynprune.gate.plan import GroupPlan
from dynprune.gate.route import Experts, why_not_experts
from dynprune.gate.router import Grain
from dynprune.gate.topr import kept_count
from dynprune.host.modes import at_inference
from dynprune.host.trial import Snapshot
from dynprune.measure.moments import dense_function
from dynprune.planning.clusters import k_means
from dynprune.planning.expert_draft import RIDGE, Consumer, GroupDraft
from dynprune.planning.grain import has_channels_first

__all__ = [
    "add_dense",
    "draft_experts",
    "draft_of",
    "fit_drafts",
    "fit_experts",
    "k_means",
    "portions",
    "run_through",
    "score_dense",
]

MOST_BYTES = 1 << 30  # of second moments that are held at once

Feed = Callable[[GroupDraft, str, Tensor, Tensor, Tensor | None], None]
"""Told of every consumer that runs: its group's draft, its name, the tokens (B, T, C) that the
group's first producer read, the neurons (B, T, N) that it reads, and which tokens count."""


def fit_experts(
    model: nn.Module,
    plans: Sequence[GroupPlan],
    calls: Sequence[Example],
    *,
    experts: int | Mapping[str, int] = 4,
    grains: Mapping[str, Grain] | None = None,
    ridge: float = RIDGE,
) -> dict[str, Experts]:
    r"""Fit experts to what the dense model does on a few inputs; the model is not changed.

    See `GroupDraft`; every consumer's target is what it makes in the dense model.

    Args:
        model: dense, or gated, of which nothing is then skipped.
        plans: the groups; those that cannot have experts are left out.
        calls: a few hundred inputs are needed for more than a few experts of whole instances.
        experts: M, at most, of all groups or of each.
        grains: group name -> what chooses; instances where it is absent.
        ridge: lambda, over the mean square of a kept neuron.

    Returns:
        group name -> its experts, for `put_experts`.

    Raises:
        UsageError: ``calls`` is empty, or there is less than one expert.
    """
    drafts = draft_experts(model, plans, calls, experts=experts, grains=grains, ridge=ridge)
    return {plan.group.name: draft.experts() for plan, draft in drafts.items()}


def draft_experts(
    model: nn.Module,
    plans: Sequence[GroupPlan],
    calls: Sequence[Example],
    *,
    experts: int | Mapping[str, int] = 4,
    grains: Mapping[str, Grain] | None = None,
    ridge: float = RIDGE,
) -> dict[GroupPlan, GroupDraft]:
    """Do as `fit_experts` does, and return the drafts, which may be fitted further."""
    grains = grains or {}
    drafts: dict[GroupPlan, GroupDraft] = {}
    for plan in plans:
        name = plan.group.name
        grain = grains.get(name, "instance")
        if why_not_experts(model, plan, grain) is None:
            count = experts if isinstance(experts, int) else experts.get(name, 1)
            drafts[plan] = draft_of(model, plan, experts=count, grain=grain)
    if not calls:
        raise UsageError("experts are fitted to what the model does on inputs, and there is none")
    fit_drafts(model, drafts, calls, ridge=ridge)
    return drafts


def fit_drafts(
    model: nn.Module,
    drafts: Mapping[GroupPlan, GroupDraft],
    calls: Sequence[Example],
    *,
    ridge: float = RIDGE,
) -> None:
    """Fit drafts to the dense model, in place, as `fit_experts` does."""
    if not drafts:
        return
    run_through(model, drafts, calls, _see)
    for draft in drafts.values():
        draft.cluster()
    run_through(model, drafts, calls, _measure)
    for portion in portions(drafts):
        for draft in portion.values():
            draft.choose_sets()
        run_through(model, portion, calls, add_dense)
        for draft in portion.values():
            draft.solve(ridge=ridge)


def draft_of(model: nn.Module, plan: GroupPlan, *, experts: int, grain: Grain) -> GroupDraft:
    """Begin the experts of a group, with the weights that its consumers have now.

    Args:
        model: dense or gated.
        plan: of the group; where the model is gated, its gate's prune ratio counts.
        experts: M, at most.
        grain: what chooses.
    """
    if experts < 1:
        raise UsageError(f"experts={experts} must be at least 1")
    gate = gates(model).get(plan.group.name)
    ratio = plan.config.prune_ratio if gate is None else gate.prune_ratio
    consumers = {}
    for channels in plan.group.consumers:
        module = model.get_submodule(channels.module)
        bias = module._parameters.get("bias")
        matrix = _matrix(module).detach().clone(memory_format=torch.contiguous_format)
        own = None if bias is None else bias.detach().clone()
        consumers[channels.module] = Consumer(matrix, own)
    made = [model.get_submodule(c.module) for c in (*plan.group.producers, *plan.group.carriers)]
    return GroupDraft(
        consumers,
        features=sum(
            parameter.numel() // plan.group.neurons
            for module in made
            for parameter in module.parameters(recurse=False)
        ),
        kept=kept_count(plan.group.neurons, ratio, plan.config.align),
        experts=experts,
        grain=grain,
    )


def run_through(
    model: nn.Module,
    drafts: Mapping[GroupPlan, GroupDraft],
    calls: Sequence[Example],
    feed: Feed,
) -> None:
    """Run the dense function on every call, and tell ``feed`` of every consumer.

    Args:
        model: dense, or gated, of which nothing is then skipped; left as it is.
        drafts: of the groups that matter.
        calls: inputs, with their padding masks.
        feed: what is told; see `Feed`.
    """
    gated = is_gated(model)
    scope = attached(model).scope if gated else Scope()
    with at_inference(model), torch.no_grad(), ExitStack() as stack:
        stack.enter_context(dense_function(model) if gated else nullcontext())
        for path in () if gated else whole_group_modules(list(drafts)):
            scope.watch(model.get_submodule(path), path)
        if not gated:
            stack.callback(scope.close)
        for plan, draft in drafts.items():
            stack.enter_context(_watched(model, plan, draft, scope, feed))
        own = Snapshot(model)
        for call in calls:
            call.run(model)
            own.put_back()


def portions(
    drafts: Mapping[GroupPlan, GroupDraft],
) -> Iterator[dict[GroupPlan, GroupDraft]]:
    """Divide the groups so that the moments of each portion stay small."""
    portion: dict[GroupPlan, GroupDraft] = {}
    size = 0
    for plan, draft in drafts.items():
        if portion and size + draft.bytes > MOST_BYTES:
            yield portion
            portion, size = {}, 0
        portion[plan] = draft
        size += draft.bytes
    if portion:
        yield portion


def _see(
    draft: GroupDraft, name: str, tokens: Tensor, _hidden: Tensor, real: Tensor | None
) -> None:
    if name == next(iter(draft.consumers)):
        draft.see(tokens, real)


def _measure(
    draft: GroupDraft, name: str, tokens: Tensor, hidden: Tensor, real: Tensor | None
) -> None:
    if name == next(iter(draft.consumers)):
        draft.measure(tokens, hidden, real)


def add_dense(
    draft: GroupDraft, name: str, tokens: Tensor, hidden: Tensor, real: Tensor | None
) -> None:
    """Aim at what the consumer makes in the dense model."""
    draft.add(name, tokens, hidden, draft.consumers[name](hidden), real)


def score_dense(
    draft: GroupDraft, name: str, tokens: Tensor, hidden: Tensor, real: Tensor | None
) -> None:
    """Measure a fitted draft against what the consumer makes in the dense model."""
    draft.score(name, tokens, hidden, draft.consumers[name](hidden), real)


@contextmanager
def _watched(
    model: nn.Module, plan: GroupPlan, draft: GroupDraft, scope: Scope, feed: Feed
) -> Iterator[None]:
    """Tell of every consumer of a group while the block runs."""
    noted: tuple[Tensor, Tensor | None] | None = None

    def first(module: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal noted
        call = scope.current()
        x = args[0].movedim(1, -1) if has_channels_first(module) else args[0]
        count = call.instances if plan.layout.folded else x.shape[plan.layout.axis]
        tokens = to_instances(x, count, plan.layout)
        noted = tokens.detach().clone(), call.real(tokens, x)

    with ExitStack() as stack:
        producer = model.get_submodule(plan.group.producers[0].module)
        stack.callback(producer.register_forward_pre_hook(first).remove)
        for channels in plan.group.consumers:

            def reads(
                module: nn.Module, args: tuple[Any, ...], name: str = channels.module
            ) -> None:
                assert noted is not None
                tokens, real = noted
                x = args[0].movedim(1, -1) if has_channels_first(module) else args[0]
                hidden = to_instances(x, len(tokens), plan.layout)
                feed(draft, name, tokens, hidden, None if real is None else real.bool())

            consumer = model.get_submodule(channels.module)
            stack.callback(consumer.register_forward_pre_hook(reads).remove)
        yield


def _matrix(module: nn.Module) -> Tensor:
    """Return a layer's weight as (out, in)."""
    if isinstance(module, DynamicLinear):
        return module.matrix
    weight = module.get_parameter("weight")
    return weight.t() if weight_layout(module) == "transposed" else weight.flatten(1)
