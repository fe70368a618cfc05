"""Fix the neurons of groups: one set for every input, the rest removed from all layers for good."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynprune.errors import GateError, UsageError
from dynprune.example import Example
from dynprune.gate.execution import set_execution
from dynprune.gate.inject import attached, gates, remove
from dynprune.gate.layout import weight_layout
from dynprune.gate.plan import GroupPlan, gated
from dynprune.gate.topr import top_r
from dynprune.graph.neurons import Channels
from dynprune.host.modes import at_inference
from dynprune.host.outputs import close, tensors_of
from dynprune.rewrite.cuts import (
    FIX_NEURONS,
    Cut,
    Side,
    add_bias,
    can_narrow_layer,
    keeping,
    narrow_layers,
)
from dynprune.rewrite.made import forget_undo
from dynprune.rewrite.record import Rewrite

__all__ = [
    "KeptNeurons",
    "fix_gates",
    "fix_groups",
    "kept_by",
    "narrow_gates",
    "only_fixable",
    "why_not_fixed",
]

TOLERANCE = 1e-4
"""Largest error of a fixed model to the masked one: rounding of every layer, one after another."""


@dataclass(frozen=True, eq=False)
class KeptNeurons:
    """The neurons of one group that every input keeps.

    Attributes:
        index: (K,) their numbers, ascending.
        mean: (neurons,) value at which the others stood at the consumers; zero where None.
    """

    index: Tensor
    mean: Tensor | None = None


def why_not_fixed(model: nn.Module, plan: GroupPlan) -> str | None:
    """Say why a group's neurons cannot be removed from all of its layers, or None.

    Args:
        model: dense.
        plan: as `plan_groups` returned it: its mode tells whether the model's code follows.
    """
    if plan.mode == "refused":
        return plan.reason
    if plan.mode != "compact":
        return f"its layers cannot be narrowed for good: {plan.reason}"
    if plan.products is not None:
        return "its layers cannot be narrowed for good: code around them needs heads of full width"
    owners = Counter(
        id(p) for m in model.modules() for p in m._parameters.values() if p is not None
    )
    for channels, side in _sides(plan):
        module = model.get_submodule(channels.module)
        if not can_narrow_layer(module, side):
            return f"{channels.module} is a {type(module).__name__}, which cannot be narrowed"
        if any(p is not None and owners[id(p)] > 1 for p in module._parameters.values()):
            return f"{channels.module} shares its weight with another layer"
    return None


def only_fixable(model: nn.Module, plans: Sequence[GroupPlan]) -> list[GroupPlan]:
    """Refuse the plans whose neurons cannot be removed permanently, each with its reason."""
    reasons = [why_not_fixed(model, plan) for plan in plans]
    return [p if why is None else p.refused(why) for p, why in zip(plans, reasons, strict=True)]


@torch.no_grad()
def fix_groups(
    model: nn.Module, plans: Sequence[GroupPlan], kept: Mapping[str, KeptNeurons]
) -> tuple[Rewrite, Callable[[], None]]:
    r"""Remove the neurons outside one set from every layer of their groups, in place.

    Producers lose rows, consumers columns, carriers channels, and the integers by which attention
    code knows the width of its heads are set to what is left. The scale of the scores is not
    touched: it stays that of the full head. What is left are layers of the classes that were there.

    .. math:: b_2 \leftarrow b_2 + W_2^{skipped} \mu^{skipped}

    Args:
        model: dense, without gates.
        plans: the groups, of mode ``compact``.
        kept: group name -> its set; every head of a group keeps equally many.

    Returns:
        The record, from which `reapply` builds the narrow architecture, and a function that puts
        everything back as it was.

    Raises:
        UsageError: a set does not fit its group; the model is untouched.
        GateError: a group cannot be fixed; the model is untouched.
    """
    chosen = [plan for plan in plans if plan.group.name in kept]
    if unknown := sorted(set(kept) - {plan.group.name for plan in chosen}):
        raise UsageError(f"no group is called {unknown[0]!r}")
    for plan in chosen:
        if (why := why_not_fixed(model, plan)) is not None:
            raise GateError(f"{plan.group.name} cannot be fixed: {why}.")
        _check_set(plan, kept[plan.group.name].index)
    heads = _head_widths(chosen, kept)
    sides = [(plan, c, side) for plan in chosen for c, side in _sides(plan)]
    dense = {(channels.module, side): channels.size for _, channels, side in sides}
    before = {(host, name): getattr(model.get_submodule(host), name) for host, name in heads}
    hosts = [model.get_submodule(name) for name, _ in heads]
    layers = [model.get_submodule(channels.module) for _, channels, _ in sides]
    put_back = keeping([*layers, *hosts])
    try:
        biases = [b for plan in chosen for b in _fold_means(model, plan, kept[plan.group.name])]
        cuts = _cuts(model, sides, kept, dense)
        narrow_layers(model, cuts)
        for (host, attribute), value in heads.items():
            setattr(model.get_submodule(host), attribute, value)
    except BaseException:
        put_back()
        raise
    details = {
        "layers": [
            {
                "module": cut.module,
                "side": cut.side,
                "size": len(cut.kept),
                "dense": dense[cut.module, cut.side],
                "transposed": cut.transposed,
            }
            for cut in cuts
        ],
        "biases": biases,
        "heads": [
            {"module": host, "attribute": name, "value": value, "dense": before[host, name]}
            for (host, name), value in heads.items()
        ],
        "groups": [
            {
                "name": plan.group.name,
                "kind": plan.group.kind,
                "neurons": plan.group.neurons,
                "kept": kept[plan.group.name].index.tolist(),
            }
            for plan in chosen
        ],
    }
    return Rewrite(FIX_NEURONS, "", details, None), put_back


def kept_by(model: nn.Module) -> dict[str, KeptNeurons]:
    """Return what every gate of a model keeps by its order alone, at its prune ratio now."""
    return {
        name: KeptNeurons(
            top_r(gate.prior[None], gate.kept, gate.segments)[0].sort().values.cpu(),
            None if gate.mean is None else gate.mean.detach().clone(),
        )
        for name, gate in gates(model).items()
    }


def fix_gates(model: nn.Module, example: Example) -> tuple[Rewrite, Callable[[], None]]:
    """Turn gates that keep one set for every input into narrow layers, in place, and prove it.

    Args:
        model: gated in the order ``fixed``, calibrated and refitted.
        example: a call, on which the narrow model is held against the masked one.

    Returns:
        As `fix_groups` does. The way back leads to the dense model, without gates, with the weights
        that it has now.

    Raises:
        GateError: the narrow model computes something else; the model is then dense.
    """
    made = attached(model).made
    record, put_back = narrow_gates(model, example)
    forget_undo(model, made)  # dense weights that were refitted: there is no way back to them
    return record, put_back


def narrow_gates(
    model: nn.Module, example: Example, *, leaving: Collection[str] = ()
) -> tuple[Rewrite, Callable[[], None]]:
    """Do as `fix_gates` does, but for the groups in ``leaving``, which are dense afterwards.

    How weights that were refitted become what they were is still known.
    """
    plans = gated(attached(model).plans)
    for name in leaving:
        gates(model)[name].set_prune_ratio(0.0)
    kept = {name: own for name, own in kept_by(model).items() if name not in leaving}
    set_execution(model, "masked")
    with at_inference(model):
        expected = tensors_of(example.run(model))
    remove(model)
    record, put_back = fix_groups(model, plans, kept)
    try:
        with at_inference(model):
            found = tensors_of(example.run(model))
    except Exception as error:  # host code fails in its own words
        put_back()
        raise GateError(f"The model does not run with narrow layers: {error}") from error
    if not close(found, expected, TOLERANCE):
        put_back()
        raise GateError(
            "The model with narrow layers computes something else than its gates: code of its own "
            "depends on a width that was taken. Use apply.gate.choose: neurons, or ignore groups "
            "by apply.ignore."
        )
    return record, put_back


def _sides(plan: GroupPlan) -> list[tuple[Channels, Side]]:
    group = plan.group
    return [
        *((channels, "out") for channels in (*group.producers, *group.carriers)),
        *((channels, "in") for channels in group.consumers),
    ]


def _check_set(plan: GroupPlan, index: Tensor) -> None:
    group, count = plan.group, len(index)
    if count == 0 or index.dim() != 1 or not bool((index[1:] > index[:-1]).all()):
        raise UsageError(f"the set of {group.name} must name one neuron at least, ascending")
    if int(index[0]) < 0 or int(index[-1]) >= group.neurons:
        raise UsageError(f"the set of {group.name} names neurons beyond its {group.neurons}")
    width = group.neurons // group.segments
    if len(set(torch.bincount(index // width, minlength=group.segments).tolist())) > 1:
        raise UsageError(f"the set of {group.name} does not keep equally many of every head")


def _head_widths(
    plans: Sequence[GroupPlan], kept: Mapping[str, KeptNeurons]
) -> dict[tuple[str, str], int]:
    """Return (module, attribute) -> its narrow value, for all attributes that plans name."""
    widths: dict[tuple[str, str], int] = {}
    for plan in plans:
        count = len(kept[plan.group.name].index)
        for head in plan.heads:
            value = count // plan.group.segments if head.per_head else count
            if widths.setdefault((head.module, head.attribute), value) != value:
                raise UsageError(
                    f"{head.module}.{head.attribute} is one width for groups that keep "
                    f"{widths[head.module, head.attribute]} and {value} neurons"
                )
    return widths


def _fold_means(model: nn.Module, plan: GroupPlan, kept: KeptNeurons) -> list[str]:
    """Add what skipped neurons gave to the consumers' biases; name those that had none."""
    if kept.mean is None or not bool(kept.mean.any()):
        return []
    made = []
    skipped = _skipped(plan.group.neurons, kept.index)
    mean = kept.mean.detach().double().cpu()[skipped]
    for channels in plan.group.consumers:
        module = model.get_submodule(channels.module)
        if module._parameters.get("bias") is None:
            made.append(channels.module)
            add_bias(module)
        weight, bias = module.get_parameter("weight"), module.get_parameter("bias")
        layout = weight_layout(module)
        matrix = weight.t() if layout == "transposed" else weight.flatten(1)
        columns = matrix[:, channels.index[skipped].flatten().to(weight.device)].double()
        stand = mean.repeat_interleave(channels.index.shape[1]).to(weight.device)
        new = bias.double() + columns @ stand
        module.bias = nn.Parameter(new.to(bias), requires_grad=bias.requires_grad)
    return made


def _skipped(neurons: int, index: Tensor) -> Tensor:
    skipped = torch.ones(neurons, dtype=torch.bool)
    skipped[index.cpu()] = False
    return skipped.nonzero().flatten()


def _cuts(
    model: nn.Module,
    sides: Sequence[tuple[GroupPlan, Channels, Side]],
    kept: Mapping[str, KeptNeurons],
    sizes: Mapping[tuple[str, Side], int],
) -> list[Cut]:
    """Return what every axis keeps when all groups that lie on it lose their neurons."""
    lost: dict[tuple[str, Side], set[int]] = defaultdict(set)
    for plan, channels, side in sides:
        skipped = _skipped(plan.group.neurons, kept[plan.group.name].index)
        lost[channels.module, side].update(channels.index[skipped].flatten().tolist())
    return [
        Cut(
            name,
            side,
            tuple(i for i in range(sizes[name, side]) if i not in lost[name, side]),
            _is_transposed(model.get_submodule(name)),
        )
        for name, side in lost
    ]


def _is_transposed(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    if isinstance(module, nn.Linear) or weight is None or weight.dim() != 2:
        return False
    return weight_layout(module) == "transposed"
