"""The flow from a model to a gated student and its training, one step a function."""

import copy
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from dynprune.choose import SavedTime, choose_by_latency, refuse_whole
from dynprune.data import (
    SegmentationData,
    TrainingBatches,
    class_shares,
    inverse_root_weights,
    normalise,
)
from dynprune.distill import is_first_process
from dynprune.distill.journal import Record, last_scores
from dynprune.distill.trainer import train
from dynprune.distribute import SavedMacs, Savings, distribute_by_sensitivity
from dynprune.errors import DynpruneError, NoMatchError, OutputError
from dynprune.evaluate import evaluate
from dynprune.example import Example
from dynprune.gate import (
    GateConfig,
    GroupPlan,
    attached,
    calibrate,
    inject,
    is_gated,
    plan_groups,
    refit_consumers,
    remove,
    start_from_weights,
)
from dynprune.gate.fixed import fix_gates, only_fixable
from dynprune.gate.probe import small_example
from dynprune.graph import Grouping, find_groups
from dynprune.models import LoadedModel
from dynprune.modes import at_inference, keeping_buffers
from dynprune.provenance import Provenance, provenance_of, set_provenance
from dynprune.recipe import Recipe, dump_recipe
from dynprune.recipe.build import (
    batch_arguments,
    gate_configs,
    picture_arguments,
    training_arguments,
)
from dynprune.removal import drop_dead
from dynprune.rewrite import UNPACK_ATTENTION, Rewrite, rewrite, undo
from dynprune.rewrite.narrow import refuse_removed
from dynprune.storage import write_model

__all__ = [
    "Inspection",
    "apply_recipe",
    "calibration_calls",
    "distill",
    "inspect_model",
    "learn",
    "make_teacher",
    "restore",
]

logger = logging.getLogger(__name__)

UNGUIDED = (UNPACK_ATTENTION,)
"""Rewrites of a model that is looked at without a recipe: those that open groups to gates."""


@dataclass(frozen=True)
class Inspection:
    """What `inspect_model` found, and what gating would do.

    Attributes:
        model: its name.
        plans: every neuron group with the mode in which it would run.
        trace_seconds: time that tracing and grouping took.
        notes: what a user should know of how the model was rewritten and traced.
    """

    model: str
    plans: tuple[GroupPlan, ...]
    trace_seconds: float
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Give the JSON document of ``dynprune inspect --json``."""
        return {
            "model": self.model,
            "groups": [
                {
                    "name": plan.group.name,
                    "kind": plan.group.kind,
                    "producers": [c.module for c in plan.group.producers],
                    "consumers": [c.module for c in plan.group.consumers],
                    "carriers": [c.module for c in plan.group.carriers],
                    "neurons": plan.group.neurons,
                    "heads": plan.group.heads,
                    "mode": plan.mode,
                    "reason": plan.reason,
                }
                for plan in self.plans
            ],
            "trace_seconds": self.trace_seconds,
            "notes": list(self.notes),
        }


def inspect_model(loaded: LoadedModel, recipe: Recipe | None = None) -> Inspection:
    """Find the neuron groups of a model and settle how each would run; changes nothing.

    Args:
        loaded: the model; a gated one tells what was done to it.
        recipe: whose targets and rewrites count; every group is a target where None.

    Raises:
        NoMatchError: where a target or ignore pattern of the recipe matches nothing.
    """
    model = loaded.module
    if is_gated(model):
        return Inspection(loaded.name, attached(model).plans, 0.0, ("the model is gated",))
    try:
        # Nothing is kept, so the proof may run on less.
        with keeping_buffers(model):
            with at_inference(model):
                small = small_example(model, loaded.example)
            records = rewrite(model, small, UNGUIDED if recipe is None else recipe.rewrite)
        grouping = find_groups(model, loaded.example)
        if recipe is None:
            configs = {g.name: GateConfig() for g in grouping.groups}
        else:
            configs = gate_configs(recipe, grouping.groups)
        plans = plan_groups(model, loaded.example, grouping.groups, configs)
    finally:
        undo(model)
    notes = (*_notes_of(records), *grouping.notes)
    return Inspection(loaded.name, tuple(plans), grouping.seconds, notes)


def _notes_of(records: Sequence[Rewrite]) -> Iterator[str]:
    """Say which modules stand in another form than the user wrote them in, or why they do not."""
    records = [record for record in records if record.name == UNPACK_ATTENTION and record.module]
    made = [record.module for record in records if record.reason is None]
    if made:
        names = ", ".join(made[:3]) + (f" and {len(made) - 3} more" if len(made) > 3 else "")
        yield (
            f"rewrite {UNPACK_ATTENTION} gives {names} a linear each for queries, keys and values; "
            "a recipe must name it, as recipe any does"
        )
    for record in records:
        if record.reason is not None:
            yield f"rewrite {UNPACK_ATTENTION} leaves {record.module} as it is: {record.reason}"


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
    """
    model = loaded.module
    removed: list[Rewrite] = []
    put_back: Callable[[], None] | None = None
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


def make_teacher(loaded: LoadedModel, rewrites: Sequence[str]) -> nn.Module:
    """Give a frozen copy of a dense model in its rewritten, cheaper form."""
    teacher = copy.deepcopy(loaded.module)
    rewrite(teacher, loaded.example, rewrites)
    return teacher.eval().requires_grad_(False)


def learn(
    student: nn.Module,
    teacher: nn.Module | None,
    recipe: Recipe,
    *,
    training: SegmentationData,
    validation: SegmentationData | None = None,
    output: Path | None = None,
    resume: bool = False,
    only: str | None = None,
    device: str | None = None,
) -> Iterator[Record]:
    """Train any student by the recipe's stages, in place; a dense one too.

    Args:
        student: the model that learns.
        teacher: as `make_teacher` gave it; None where no loss needs one.
        recipe: its training sections are carried out.
        training: pictures that are learnt from.
        validation: pictures that the run is judged by; none where None.
        output: directory of the checkpoints and the records; None writes nothing.
        resume: continue from the latest checkpoint in ``output``.
        only: the one stage to run.
        device: where to train; accelerate's choice where None.

    Yields:
        The records of `dynprune.distill.train`.
    """
    batches = TrainingBatches(training, **batch_arguments(recipe))
    pictures = picture_arguments(recipe)

    def validate(model: nn.Module) -> dict[str, float]:
        assert validation is not None
        where = next(model.parameters()).device
        result = evaluate(model, validation, device=where, **pictures)
        return {"miou": result.miou, "pixel_accuracy": result.pixel_accuracy}

    weights = None if recipe.data is None else recipe.data.class_weights
    if weights == "inverse-root":
        weights = tuple(inverse_root_weights(class_shares(training)))
    described = {k: v for k, v in recipe.to_data().items() if k not in ("runtime", "description")}
    yield from train(
        student,
        teacher,
        batches.__getitem__,
        validate=None if validation is None else validate,
        output=output,
        resume=resume,
        only=only,
        class_weights=weights,
        fingerprint={"recipe": described, "data": training.fingerprint()},
        **training_arguments(recipe, device=device),
    )


def distill(
    student: nn.Module,
    teacher: nn.Module,
    recipe: Recipe,
    *,
    training: SegmentationData,
    validation: SegmentationData,
    output: Path,
    resume: bool = False,
    only: str | None = None,
    device: str | None = None,
) -> Iterator[Record]:
    """Train a gated student by the recipe's stages, and write it at the end; see `learn`."""
    yield from learn(
        student,
        teacher,
        recipe,
        training=training,
        validation=validation,
        output=output,
        resume=resume,
        only=only,
        device=device,
    )
    if is_first_process():
        scores, steps = last_scores(output)
        write_into(student, output, scores=scores, steps=steps)


def write_into(
    model: nn.Module,
    directory: Path,
    *,
    scores: Mapping[str, float] | None = None,
    steps: int | None = None,
) -> None:
    """Write a model's files into a directory that holds other things, each file at one stroke."""
    beside = directory / ".model.tmp"
    try:
        shutil.rmtree(beside, ignore_errors=True)  # of a run that was killed here
        beside.mkdir()
        write_model(model, beside, scores=scores, steps=steps)
        for path in sorted(beside.iterdir()):
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
            path.replace(directory / path.name)
    except (OSError, SafetensorError) as error:
        if isinstance(error, DynpruneError):
            raise
        raise OutputError(f"cannot write the model into {directory}: {error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
