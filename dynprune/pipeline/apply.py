"""From a dense model to a gated student, and back."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from torch import Tensor, nn

from dynprune.data import (
    SegmentationData,
    normalise,
)
from dynprune.errors import NoMatchError
from dynprune.example import Example
from dynprune.gate import GroupPlan, inject, is_gated, plan_groups, remove
from dynprune.gate.fixed import fix_gates, only_fixable
from dynprune.graph import Grouping, find_groups
from dynprune.host.modes import keeping_buffers
from dynprune.models import LoadedModel, Provenance, provenance_of, records_of, set_provenance
from dynprune.pipeline.arguments import gate_configs, picture_arguments
from dynprune.planning.calibrate import calibrate, start_from_weights
from dynprune.planning.choose import SavedTime, choose_by_latency, refuse_whole
from dynprune.planning.distribute import SavedMacs, Savings, distribute_by_sensitivity
from dynprune.planning.refit import refit_consumers
from dynprune.planning.removal import drop_dead
from dynprune.recipe import Recipe, dump_recipe
from dynprune.rewrite import Rewrite, rewrite, undo
from dynprune.rewrite.narrow import refuse_removed

__all__ = ["apply_recipe", "calibration_calls", "restore"]

logger = logging.getLogger(__name__)


def apply_recipe(
    loaded: LoadedModel, recipe: Recipe, *, calibration: Iterable[Example] | None = None
) -> nn.Module:
    """Rewrite and gate a dense model, in place.

    Args:
        loaded: the dense model.
        recipe: its ``rewrite``, ``apply`` and ``sparsity`` are carried out.
        calibration: inputs from which order, means and predictors start; the weights alone give
            an order where None.

    Returns:
        ``loaded.module`` in eval mode, gated; with ``apply.gate.choose: fixed`` it has narrow plain
        layers and no gates. Where anything fails it is as it was.

    Raises:
        NoMatchError: where a target matches nothing, or no group at all can be gated.
        UsageError: neurons were removed from the model for good before.
    """
    model = loaded.module
    refuse_removed(records_of(model))
    removed: list[Rewrite] = []
    put_back: Callable[[], None] | None = None
    weights: list[tuple[nn.Parameter, Tensor]] = []
    if recipe.apply.drop_dead:
        calibration = list(calibration or ())
        found = find_groups(model, loaded.example).groups
        removed, put_back = drop_dead(
            model, loaded.example, found, calibration, align=recipe.apply.gate.align
        )
        logger.info("Removed %d neurons of type III.", sum(len(r.details["dead"]) for r in removed))
    with keeping_buffers(model):
        rewrites = [*removed, *rewrite(model, loaded.example, recipe.rewrite)]
    try:
        grouping = find_groups(model, loaded.example)
        calibration = None if calibration is None else list(calibration)
        plans = _planned(model, loaded.example, recipe, grouping, calibration or ())
        if recipe.apply.gate.choose == "fixed":
            plans = only_fixable(model, plans)
        record = inject(model, plans, seed=recipe.runtime.seed)
        refused = [plan for plan in record.plans if plan.mode == "refused"]
        if len(refused) == len(record.plans):
            reasons = sorted({plan.reason or "" for plan in refused})
            raise NoMatchError(
                f"No neuron group of {loaded.name} can be gated: {'; '.join(reasons[:3])}. "
                "Run dynprune inspect to see them all."
            )
        start_from_weights(model)
        if calibration is not None and recipe.apply.gate.start == "informed":
            count = calibrate(model, calibration)
            logger.info("Calibrated the gates on %d inputs.", count)
            if recipe.apply.calibration.refit:
                if recipe.apply.gate.choose == "fixed":  # whose proof may still fail
                    weights = [(p, p.detach().clone()) for p in model.parameters()]
                count = refit_consumers(model, calibration)
                logger.info("Refitted %d layers that read gated neurons.", count)
        elif recipe.apply.gate.start == "informed":
            logger.warning(
                "No data was given: neurons are ordered by their weights and skipped ones stand "
                "at zero. Give --data to calibrate."
            )
        if recipe.apply.gate.choose == "fixed":
            rewrites.append(fix_gates(model, loaded.example)[0])
    except BaseException:
        if is_gated(model):
            remove(model)
        for parameter, value in weights:
            parameter.data.copy_(value)
        undo(model)
        if put_back is not None:
            put_back()
        raise
    set_provenance(
        model,
        Provenance(
            source=loaded.source,
            name=loaded.name,
            input_shape=tuple(loaded.example.tensors[0].shape),
            classes=loaded.classes,
            rewrites=tuple(rewrites),
            recipe=dump_recipe(recipe),
        ),
    )
    return model.eval()


def _planned(
    model: nn.Module,
    example: Example,
    recipe: Recipe,
    grouping: Grouping,
    calibration: Sequence[Example],
) -> list[GroupPlan]:
    """Settle how every group is gated, and how much it skips."""
    configs = gate_configs(recipe, grouping.groups)
    # One set for every input sees no input, so none of the future either.
    fixed = recipe.apply.gate.choose == "fixed"
    plans = plan_groups(model, example, grouping.groups, configs, allow_causal=fixed)
    saves_time = recipe.apply.target == "latency"
    if saves_time:
        plans = choose_by_latency(model, example, plans)
    if recipe.sparsity.distribution == "uniform":
        return plans
    savings: Savings = SavedMacs(grouping.costs, plans)
    if saves_time and calibration:
        savings = SavedTime(model, example, plans)
    plans = distribute_by_sensitivity(model, example, plans, savings, calibration)
    return refuse_whole(plans) if saves_time else plans


def restore(model: nn.Module) -> nn.Module:
    """Take gates and rewrites out of a model, in place: what is left is dense.

    Returns:
        The model. Untrained, it is the one that was gated, bit for bit; trained, it is the dense
        model with the student's weights.

    Raises:
        UsageError: neurons were removed for good; the model is untouched.
    """
    known = provenance_of(model)
    refuse_removed(known.rewrites)
    if is_gated(model):
        remove(model)
    undo(model)
    set_provenance(model, replace(known, rewrites=(), recipe=None))
    return model


def calibration_calls(
    data: SegmentationData, recipe: Recipe, *, device: str = "cpu"
) -> Iterator[Example]:
    """Give the calls that calibration runs: pictures at full size, evenly over the data."""
    count = min(recipe.apply.calibration.images, len(data))
    pictures = picture_arguments(recipe)
    for position in range(count):
        image, _ = data.load(position * len(data) // count)
        yield Example((normalise(image[None].to(device), pictures["mean"], pictures["std"]),))
