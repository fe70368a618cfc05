"""Turn the choices that trained gates really make into experts and fixed sets."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.gate.call import Observation, observing
from dynprune.gate.compensation import fold_means
from dynprune.gate.execution import set_execution
from dynprune.gate.forms import put_forms
from dynprune.gate.inject import attached, gates, inject, is_gated, remove
from dynprune.gate.instances import to_instances
from dynprune.gate.layout import weight_layout
from dynprune.gate.linear import DynamicLinear
from dynprune.gate.neuron_gate import NeuronGate
from dynprune.gate.plan import GroupPlan, gated
from dynprune.gate.predictor import pool_tokens
from dynprune.gate.route import why_not_experts
from dynprune.gate.topr import top_r
from dynprune.host.modes import at_inference
from dynprune.host.outputs import relative_error
from dynprune.planning.clusters import k_means, nearest_of
from dynprune.planning.expert_draft import GroupDraft
from dynprune.planning.experts import draft_of
from dynprune.planning.sequential import outputs_on
from dynprune.rewrite.cuts import add_bias
from dynprune.rewrite.record import Rewrite

__all__ = ["Consolidation", "consolidate"]


@dataclass(frozen=True)
class Consolidation:
    """What became of a trained model's gates, and what it cost.

    Attributes:
        records: of what was done to the model.
        experts: groups that have experts now.
        fixed: groups that keep one set now.
        agreement: share of the neurons that a gate kept which its new set has, a mean over groups
            and inputs.
        error: of the output on inputs that were held back: squared difference to that of the gated
            model over its squared norm.
    """

    records: tuple[Rewrite, ...]
    experts: int
    fixed: int
    agreement: float
    error: float


@dataclass
class _Choices:
    """What one gate chose: (n, neurons) kept, their values, and (n, C) pooled inputs."""

    keep: list[Tensor] = field(default_factory=list)
    value: list[Tensor] = field(default_factory=list)
    pooled: list[Tensor] = field(default_factory=list)


def consolidate(
    model: nn.Module, example: Example, calls: Sequence[Example], *, experts: int = 4
) -> Consolidation:
    """Replace a trained model's gates by experts and fixed sets, in place.

    In each hidden layer the sets that its gate chose on the calls fall into clusters. Every cluster
    is an expert: the neurons that were kept most often in it, with consumers fitted to what the
    gated model's make, gate values included. Its router takes the nearest of the clusters' mean
    inputs. Other groups keep the neurons that were kept most often.

    Args:
        model: gated by ``neurons``, each input choosing; trained or not.
        example: a call of it, on which the new form is held against masked ones.
        calls: inputs; one in four tells what it cost, and none of these is fitted to.
        experts: M, at most, of each hidden layer; 1 fixes all.

    Raises:
        UsageError: the model has no such gates, or there are fewer than four calls.
        GateError: a group cannot be fixed, or the new form computes something else.
    """
    _check(model, calls, experts)
    held, fitted = list(calls[3::4]), [call for i, call in enumerate(calls) if i % 4 != 3]
    with at_inference(model):
        wanted = outputs_on(model, held)
    plans = gated(attached(model).plans)
    chosen = _observe(model, fitted)
    drafts: dict[str, GroupDraft] = {}
    sets: dict[str, Tensor] = {}
    for plan in plans:
        name = plan.group.name
        able = why_not_experts(model, plan) is None
        centres, scale, sets[name] = _sets(gates(model)[name], chosen[name], experts if able else 1)
        if _is_read_alone(model, plan):
            drafts[name] = draft_of(model, plan, experts=len(centres), grain="instance")
            drafts[name].take(sets[name], centres, scale)
    _fit(model, plans, drafts, fitted)
    agreement = _agreement(chosen, sets)
    routed = {n: draft.experts() for n, draft in drafts.items() if len(draft.index) > 1}
    with torch.no_grad():
        _fix_rest(model, plans, sets, drafts, chosen, routed)
    records, _ = put_forms(model, example, routed)
    with at_inference(model):
        error = relative_error(outputs_on(model, held), wanted)
    return Consolidation(tuple(records), len(routed), len(plans) - len(routed), agreement, error)


def _check(model: nn.Module, calls: Sequence[Example], experts: int) -> None:
    if not is_gated(model):
        raise UsageError("The model has no gates, so there are no choices to make experts of.")
    if experts < 1:
        raise UsageError(f"experts={experts} must be at least 1")
    if len(calls) < 4:
        raise UsageError(f"{len(calls)} inputs do not tell what gates choose; give four at least")
    for name, gate in gates(model).items():
        if getattr(gate.config, "grain", "instance") == "token":
            raise UsageError(
                f"the tokens of {name} choose neurons for themselves; only choices of whole inputs "
                "can be consolidated"
            )


def _observe(model: nn.Module, calls: Sequence[Example]) -> dict[str, _Choices]:
    """Run compactly, and note what every gate chooses."""
    found = {name: _Choices() for name in gates(model)}
    names = {gate.members: name for name, gate in gates(model).items()}

    def note(seen: Observation) -> None:
        if (name := names.get(seen.neurons)) is None:
            return
        keep = seen.selection.keep.float()
        factor = seen.output.factor
        found[name].keep.append(keep)
        found[name].value.append(keep if factor is None else keep * factor.float())
        found[name].pooled.append(pool_tokens(seen.tokens.float(), "mean", seen.real))

    set_execution(model, "compact")
    with at_inference(model), observing(note):
        for call in calls:
            call.run(model)
    return found


def _sets(gate: NeuronGate, seen: _Choices, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a router's centres (M, C), its scale (C,), and the sets (M, K)."""
    keep, pooled = torch.cat(seen.keep), torch.cat(seen.pooled)
    cluster = nearest_of(keep, k_means(keep, experts))
    taken = cluster.unique().tolist()
    often = torch.stack([keep[cluster == m].mean(0) for m in taken])
    prior = gate.prior.detach().float()
    ties = 1e-4 * (prior - prior.mean()) / prior.std().clamp_min(1e-6)
    sets = top_r(often + ties, gate.kept, gate.segments).sort(1).values
    centres = torch.stack([pooled[cluster == m].mean(0) for m in taken])
    return centres, 1.0 / pooled.std(0, unbiased=False).clamp_min(1e-5), sets


def _is_read_alone(model: nn.Module, plan: GroupPlan) -> bool:
    """Whether all consumers read the whole of this group and nothing else."""
    layers = [model.get_submodule(c.module) for c in plan.group.consumers]
    return bool(layers) and all(
        isinstance(layer, DynamicLinear) and len(layer.reads) == 1 and layer.reads[0].index is None
        for layer in layers
    )


def _fit(
    model: nn.Module,
    plans: Sequence[GroupPlan],
    drafts: Mapping[str, GroupDraft],
    calls: Sequence[Example],
) -> None:
    """Fit the consumers to what they make in the gated model, of all its neurons."""
    set_execution(model, "masked")
    with at_inference(model), torch.no_grad(), ExitStack() as stack:
        for plan in plans:
            if plan.group.name in drafts:
                stack.enter_context(_watched(model, plan, drafts[plan.group.name]))
        for call in calls:
            call.run(model)
    set_execution(model, "compact")
    for draft in drafts.values():
        draft.solve()


@contextmanager
def _watched(model: nn.Module, plan: GroupPlan, draft: GroupDraft) -> Iterator[None]:
    noted: tuple[Tensor, Tensor | None] | None = None
    members = gates(model)[plan.group.name].members

    def note(seen: Observation) -> None:
        nonlocal noted
        if seen.neurons is members:
            noted = seen.tokens, None if seen.real is None else seen.real.bool()

    with observing(note), ExitStack() as stack:
        for channels in plan.group.consumers:

            def after(
                layer: DynamicLinear, args: tuple[Any, ...], y: Tensor, name: str = channels.module
            ) -> None:
                assert noted is not None
                tokens, real = noted
                first = layer.layout == "pointwise"
                hidden, made = (t.movedim(1, -1) if first else t for t in (args[0], y))
                hidden = to_instances(hidden, len(tokens), plan.layout)
                made = to_instances(made, len(tokens), plan.layout)
                draft.add(name, tokens, hidden, made, real)

            layer = model.get_submodule(channels.module)
            stack.callback(layer.register_forward_hook(after).remove)
        yield


def _fix_rest(
    model: nn.Module,
    plans: Sequence[GroupPlan],
    sets: Mapping[str, Tensor],
    drafts: Mapping[str, GroupDraft],
    chosen: Mapping[str, _Choices],
    routed: Mapping[str, Any],
) -> None:
    """Let gates that choose nothing keep the sets, with consumers as they were fitted, in place."""
    means = {name: gate.mean for name, gate in gates(model).items()}
    ratios = {name: gate.prune_ratio for name, gate in gates(model).items()}
    ordered = [
        replace(p, config=replace(p.config, order="fixed", mode="straight_through", predictor=None))
        for p in plans
    ]
    remove(model)
    for plan in plans:
        name = plan.group.name
        if name in routed:
            continue
        if name in drafts:
            for consumer, reader in drafts[name].readers.items():
                _write(
                    model.get_submodule(consumer), sets[name][0], reader.weight[0], reader.bias[0]
                )
        elif plan.group.kind == "qk":
            _scale_keys(model, plan, sets[name][0], torch.cat(chosen[name].value))
    inject(model, ordered)
    for name, gate in gates(model).items():
        gate.prior.fill_(0.0)
        gate.prior[sets[name][0].to(gate.prior.device)] = 1.0
        gate.set_prune_ratio(ratios[name])
        mean = means[name]
        if gate.mean is not None and mean is not None:
            gate.mean.copy_(torch.zeros_like(mean) if name in drafts else mean)
    fold_means(model)


def _write(layer: nn.Module, index: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Give a consumer fitted columns, in place."""
    old = layer.get_parameter("weight")
    matrix = old.t() if weight_layout(layer) == "transposed" else old.flatten(1)
    new = matrix.detach().clone()
    new[:, index.to(new.device)] = weight.to(new)
    new = new.t() if weight_layout(layer) == "transposed" else new
    old.copy_(new.reshape(old.shape))
    add_bias(layer)
    layer.get_parameter("bias").copy_(bias)


def _scale_keys(model: nn.Module, plan: GroupPlan, index: Tensor, values: Tensor) -> None:
    """Fold the mean value of every kept neuron into what makes the keys, in place."""
    kept = values[:, index]
    mean = kept.sum(0) / (kept != 0).sum(0).clamp_min(1)
    channels = plan.group.producers[-1]
    layer = model.get_submodule(channels.module)
    rows = channels.index[index, -1]
    weight, bias = layer.get_parameter("weight"), layer._parameters.get("bias")
    matrix = weight.t() if weight_layout(layer) == "transposed" else weight
    shape = (-1, *[1] * (matrix.dim() - 1))
    matrix[rows] = matrix[rows] * mean.to(matrix).view(shape)
    if bias is not None:
        bias[rows] = bias[rows] * mean.to(bias)


def _agreement(chosen: Mapping[str, _Choices], sets: Mapping[str, Tensor]) -> float:
    shares = []
    for name, seen in chosen.items():
        keep = torch.cat(seen.keep)
        ones = torch.zeros(len(sets[name]), keep.shape[1]).scatter_(1, sets[name].cpu(), 1.0)
        best = (keep.cpu() @ ones.t()).max(1).values / keep.cpu().sum(1).clamp_min(1.0)
        shares.append(float(best.mean()))
    return sum(shares) / max(1, len(shares))
