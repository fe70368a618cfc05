"""Make experts without training: clusters of inputs, a neuron set and a consumer for each."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.gate.instances import to_instances
from dynprune.gate.layout import weight_layout
from dynprune.gate.plan import GroupPlan
from dynprune.gate.route import Experts, Reader, why_not_experts
from dynprune.gate.topr import kept_count, top_r
from dynprune.host.modes import at_inference

__all__ = ["fit_experts", "k_means"]

RIDGE = 3e-3  # of the mean square of a kept neuron: how firmly weights hold to what they were
MOST_BYTES = 1 << 30  # of second moments that are held at once


def k_means(
    points: Tensor, count: int, *, rounds: int = 30, starts: int = 6, seed: int = 0
) -> Tensor:
    """Return the centres of at most ``count`` clusters, none of them empty.

    Args:
        points: (n, features).
        count: clusters.
        rounds: of reassignment.
        starts: random ones, of which the best is taken.
        seed: of the starts.

    Source: Lloyd, Least squares quantization in PCM, 1982.
    """
    generator = torch.Generator().manual_seed(seed)
    best, least = points.mean(0, keepdim=True), float("inf")
    for _ in range(starts):
        start = torch.randperm(len(points), generator=generator)[: min(count, len(points))]
        centres = points[start.to(points.device)].clone()
        for _ in range(rounds):
            nearest = torch.cdist(points, centres).argmin(1)
            taken = nearest.unique().tolist()
            centres = torch.stack([points[nearest == m].mean(0) for m in taken])
        error = float(torch.cdist(points, centres).min(1).values.square().sum())
        if error < least:
            best, least = centres, error
    return best


@dataclass
class _Seen:
    """What one group did on the calibration inputs, instance by instance."""

    pooled: list[Tensor] = field(default_factory=list)
    first: list[Tensor] = field(default_factory=list)
    second: list[Tensor] = field(default_factory=list)


@dataclass
class _Sums:
    """Second moments of one consumer over the tokens of one cluster."""

    square: Tensor
    across: Tensor
    read: Tensor
    made: Tensor
    tokens: int = 0


def fit_experts(
    model: nn.Module,
    plans: Sequence[GroupPlan],
    calls: Sequence[Example],
    *,
    experts: int = 4,
    ridge: float = RIDGE,
) -> dict[str, Experts]:
    r"""Fit experts to what the dense model does on a few inputs; the model is not changed.

    The mean tokens of all inputs fall into clusters. In each, the neurons of largest deviation
    times the norm of their consumers' columns are kept, and every consumer is fitted to the
    dense output over the cluster's tokens:

    .. math:: \min_{W', b'} \; \mathrm{mean} \, \| W y + b - W' y_S - b' \|^2
        + \lambda \| W' - W_S \|^2

    Args:
        model: dense, without gates.
        plans: the groups; those that cannot have experts are left out.
        calls: inputs without padding; a few hundred are needed for more than a few experts.
        experts: M, at most; clusters that stay empty have none.
        ridge: lambda, over the mean square of a kept neuron.

    Returns:
        group name -> its experts, for `put_experts`.

    Raises:
        UsageError: ``calls`` is empty, or has padding masks, which no expert's router sees.

    Source: reconstruction by least squares as in ThiNet, arXiv 1707.06342.
    """
    _check(calls, experts)
    able = [plan for plan in plans if why_not_experts(model, plan) is None]
    seen = {plan.group.name: _Seen() for plan in able}
    with at_inference(model), torch.no_grad():
        with ExitStack() as stack:
            for plan in able:
                stack.enter_context(_watched(model, plan, seen[plan.group.name]))
            for call in calls:
                call.run(model)
        drafts = {p.group.name: _draft(model, p, seen[p.group.name], experts) for p in able}
        for some in _portions(able, drafts):
            sums = {plan.group.name: _empty(model, plan, drafts[plan.group.name]) for plan in some}
            with ExitStack() as stack:
                for plan in some:
                    name = plan.group.name
                    stack.enter_context(_summed(model, plan, drafts[name], sums[name]))
                for call in calls:
                    call.run(model)
            for plan in some:
                name = plan.group.name
                drafts[name].readers = _readers(model, plan, drafts[name], sums[name], ridge)
    return {
        name: Experts(draft.index, draft.centres, draft.scale, draft.readers)
        for name, draft in drafts.items()
    }


def _check(calls: Sequence[Example], experts: int) -> None:
    if not calls:
        raise UsageError("experts are fitted to what the model does on inputs, and there is none")
    if experts < 1:
        raise UsageError(f"experts={experts} must be at least 1")
    masks = {name for call in calls for name in call.kwargs if "mask" in name}
    if masks:
        raise UsageError(f"an expert's router does not see padding: leave out {min(masks)!r}")


@dataclass
class _Draft:
    """The experts of a group on the way.

    Attributes:
        index: (M, K) neurons.
        centres: (M, features), in the units of the inputs.
        scale: (features,) one over their deviation.
        cluster: the expert of every instance, in the order in which they run.
        readers: what was fitted.
    """

    index: Tensor
    centres: Tensor
    scale: Tensor
    cluster: list[int]
    readers: dict[str, Reader] = field(default_factory=dict)


def _draft(model: nn.Module, plan: GroupPlan, seen: _Seen, experts: int) -> _Draft:
    pooled = torch.cat(seen.pooled).float()  # (n, features)
    first, second = torch.cat(seen.first), torch.cat(seen.second)
    scale = 1.0 / pooled.std(0, unbiased=False).clamp_min(1e-5)
    found = k_means(pooled * scale, experts)
    cluster = torch.cdist(pooled * scale, found).argmin(1)
    kept = kept_count(plan.group.neurons, plan.config.prune_ratio, plan.config.align)
    norm = torch.stack(
        [_matrix(model, c.module).float().norm(dim=0) for c in plan.group.consumers]
    ).norm(dim=0)
    scores = []
    for m in range(len(found)):
        mean, square = first[cluster == m].mean(0), second[cluster == m].mean(0)
        scores.append((square - mean.square()).clamp_min(0.0).sqrt() * norm.to(mean))
    index = top_r(torch.stack(scores), kept).sort(1).values
    return _Draft(index, found / scale, scale, cluster.tolist())


@contextmanager
def _watched(model: nn.Module, plan: GroupPlan, seen: _Seen) -> Iterator[None]:
    """Note the pooled input and the neurons' moments of every instance while the block runs."""

    def before_producer(_module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.pooled.append(_tokens(model, plan, plan.group.producers[0].module, args[0]).mean(1))

    def before_consumer(_module: nn.Module, args: tuple[Any, ...]) -> None:
        tokens = _tokens(model, plan, plan.group.consumers[0].module, args[0]).float()
        seen.first.append(tokens.mean(1))
        seen.second.append(tokens.square().mean(1))

    with (
        _before(model, plan.group.producers[0].module, before_producer),
        _before(model, plan.group.consumers[0].module, before_consumer),
    ):
        yield


@contextmanager
def _before(model: nn.Module, name: str, hook: Any) -> Iterator[None]:
    handle = model.get_submodule(name).register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _tokens(model: nn.Module, plan: GroupPlan, name: str, x: Tensor) -> Tensor:
    """Return a layer's input as (B, T, C)."""
    if weight_layout(model.get_submodule(name)) == "pointwise":
        x = x.movedim(1, -1)
    return to_instances(x, x.shape[plan.layout.axis], plan.layout)


def _matrix(model: nn.Module, name: str) -> Tensor:
    """Return a layer's weight as (out, in)."""
    module = model.get_submodule(name)
    weight = module.get_parameter("weight").detach()
    return weight.t() if weight_layout(module) == "transposed" else weight.flatten(1)


def _portions(
    plans: Sequence[GroupPlan], drafts: dict[str, _Draft]
) -> Iterator[Sequence[GroupPlan]]:
    """Divide the groups so that the moments of each portion stay small."""
    portion: list[GroupPlan] = []
    size = 0
    for plan in plans:
        experts, kept = drafts[plan.group.name].index.shape
        own = 8 * experts * kept * kept * len(plan.group.consumers)
        if portion and size + own > MOST_BYTES:
            yield portion
            portion, size = [], 0
        portion.append(plan)
        size += own
    if portion:
        yield portion


def _empty(model: nn.Module, plan: GroupPlan, draft: _Draft) -> dict[str, list[_Sums]]:
    experts, kept = draft.index.shape
    sums = {}
    for channels in plan.group.consumers:
        matrix = _matrix(model, channels.module)
        out, zeros = matrix.shape[0], matrix.new_zeros
        double = torch.float64
        sums[channels.module] = [
            _Sums(
                zeros(kept, kept, dtype=double),
                zeros(out, kept, dtype=double),
                zeros(kept, dtype=double),
                zeros(out, dtype=double),
            )
            for _ in range(experts)
        ]
    return sums


@contextmanager
def _summed(
    model: nn.Module, plan: GroupPlan, draft: _Draft, sums: dict[str, list[_Sums]]
) -> Iterator[None]:
    """Add up what every consumer reads and makes, cluster by cluster, while the block runs."""
    with ExitStack() as stack:
        for channels in plan.group.consumers:
            name, place = channels.module, iter(draft.cluster)

            def before(
                _module: nn.Module, args: tuple[Any, ...], name: str = name, place: Any = place
            ) -> None:
                matrix = _matrix(model, name)
                for row in _tokens(model, plan, name, args[0]):  # (T, neurons)
                    expert = next(place)
                    add = sums[name][expert]
                    z = row[:, draft.index[expert].to(row.device)].double()
                    y = (row @ matrix.t()).double()
                    add.square += z.t() @ z
                    add.across += y.t() @ z
                    add.read += z.sum(0)
                    add.made += y.sum(0)
                    add.tokens += len(z)

            stack.enter_context(_before(model, name, before))
        yield


def _readers(
    model: nn.Module,
    plan: GroupPlan,
    draft: _Draft,
    sums: dict[str, list[_Sums]],
    ridge: float,
) -> dict[str, Reader]:
    readers = {}
    for channels in plan.group.consumers:
        matrix = _matrix(model, channels.module).double()
        bias = model.get_submodule(channels.module)._parameters.get("bias")
        weights, offsets = [], []
        for index, own in zip(draft.index, sums[channels.module], strict=True):
            old = matrix[:, index.to(matrix.device)]
            read, made = own.read / own.tokens, own.made / own.tokens
            square = own.square / own.tokens - read.outer(read)
            across = own.across / own.tokens - made.outer(read)
            hold = (ridge * square.diagonal().mean()).clamp_min(1e-12)
            system = square + hold * torch.eye(len(square)).to(square)
            new = torch.linalg.solve(system, (across + hold * old).t()).t()
            shift = made - new @ read
            weights.append(new)
            offsets.append(shift if bias is None else shift + bias.detach().double())
        readers[channels.module] = Reader(torch.stack(weights), torch.stack(offsets))
    return readers
