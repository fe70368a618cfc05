"""From a recipe's sections to the plain arguments of the modules that do the work.

Nothing else translates: the other modules never see a recipe's section, and know their own
settings only.
"""

import re
from collections.abc import Sequence
from typing import Any

from dynprune.data import VOID, Preprocessing
from dynprune.distill import AdamW, Execution, LossTerm, Penalty, Reporting, StagePlan
from dynprune.distill.schedule import LearningRate, PruneSchedule
from dynprune.errors import NoMatchError, RecipeError
from dynprune.gate import GateConfig
from dynprune.gate.config import Grain
from dynprune.graph.neurons import NeuronGroup
from dynprune.pipeline.pictures import preprocessing_of
from dynprune.recipe.pruning import Target
from dynprune.recipe.schema import Data, Recipe
from dynprune.recipe.training import FeatureLoss, LabelLoss, SoftLabelLoss

__all__ = [
    "batch_arguments",
    "gate_configs",
    "model_arguments",
    "text_arguments",
    "training_arguments",
]


def model_arguments(recipe: Recipe) -> dict[str, Any]:
    """Return `dynprune.models.load_model` the recipe's architecture and input."""
    model = recipe.model
    return {
        "architecture": model.architecture,
        "config": model.config,
        "input_shape": model.input,
        "seed": recipe.runtime.seed,
    }


def batch_arguments(recipe: Recipe, preprocessing: Preprocessing | None = None) -> dict[str, Any]:
    """Return the batches' size, order and augmentation for `dynprune.data.TrainingBatches`.

    Args:
        recipe: its ``data`` and ``runtime`` are read.
        preprocessing: whose mean and standard deviation count; the recipe's by default.

    Raises:
        RecipeError: the recipe has no ``data`` section, or no crop in it.
    """
    data = _data(recipe)
    if data.crop is None:
        raise RecipeError(f"recipe {recipe.name} has no data.crop, and training needs one")
    preprocessing = preprocessing or preprocessing_of(recipe)
    return {
        "batch_size": recipe.runtime.batch_size,
        "seed": recipe.runtime.seed,
        "crop": data.crop,
        "scale": data.scale,
        "flip": data.flip,
        "photometric": data.photometric,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
    }


def text_arguments(recipe: Recipe) -> dict[str, Any]:
    """Return `dynprune.data.text.TextBatches` its batches' size and order.

    Raises:
        RecipeError: the recipe has no ``text`` section.
    """
    if recipe.text is None:
        raise RecipeError(f"recipe {recipe.name} has no text section, and its data is pictures")
    return {"batch_size": recipe.runtime.batch_size, "seed": recipe.runtime.seed}


def training_arguments(recipe: Recipe, *, device: str | None = None) -> dict[str, Any]:
    """Return the stages, schedules and settings of a `dynprune.distill.TrainingPlan`.

    Args:
        recipe: its training sections are read.
        device: where the run is; None lets accelerate choose.

    Raises:
        RecipeError: the recipe has no stages, no optimizer or no data.
    """
    if not recipe.stages or recipe.optimizer is None:
        raise RecipeError(
            f"recipe {recipe.name} has no stages to train; add stages, optimizer and data"
        )
    runtime, optimizer = recipe.runtime, recipe.optimizer
    schedule, rate = recipe.sparsity.schedule, recipe.lr_schedule
    return {
        "stages": [
            StagePlan(stage.name, stage.steps, tuple(_loss(loss) for loss in stage.losses))
            for stage in recipe.stages
        ],
        "optimizer": AdamW(
            lr=optimizer.lr,
            weight_decay=optimizer.weight_decay,
            betas=optimizer.betas,
            gate_lr_factor=optimizer.gate_lr_factor,
        ),
        "learning_rate": LearningRate(
            type=rate.type, power=rate.power, warmup_steps=rate.warmup_steps, per=rate.per
        ),
        "sparsity": PruneSchedule(schedule.type, end_step=schedule.end_step),
        "penalties": [Penalty(penalty.type, penalty.weight) for penalty in recipe.penalties],
        "execution": Execution(
            precision=runtime.precision,
            accumulate=runtime.accumulate,
            clip_norm=runtime.clip_norm,
            ema=runtime.ema,
            batchnorm=runtime.batchnorm,
            dropout=runtime.dropout,
            gradient_checkpointing=runtime.gradient_checkpointing,
            device=device,
            workers=runtime.workers,
        ),
        "reporting": Reporting(
            log_every=runtime.log_every,
            validate_every=runtime.validate_every,
            save_every=runtime.save_every,
            keep_checkpoints=runtime.keep_checkpoints,
            tensorboard=runtime.tensorboard,
            metric="cosine" if recipe.text else "miou",
        ),
        "ignore_index": VOID,  # whatever else counts for nothing is void once it is read
        "seed": runtime.seed,
    }


def _data(recipe: Recipe) -> Data:
    if recipe.data is None:
        raise RecipeError(f"recipe {recipe.name} has no data section, and training needs one")
    return recipe.data


def _loss(loss: FeatureLoss | LabelLoss | SoftLabelLoss) -> LossTerm:
    if isinstance(loss, FeatureLoss):
        return LossTerm(loss.type, loss.weight, on=loss.on, temperature=loss.temperature)
    if isinstance(loss, SoftLabelLoss):
        return LossTerm(loss.type, loss.weight, temperature=loss.temperature)
    return LossTerm(loss.type, loss.weight)


def gate_configs(recipe: Recipe, groups: Sequence[NeuronGroup]) -> dict[str, GateConfig]:
    """Choose the neuron groups that a recipe gates, and configure their gates.

    Args:
        recipe: its ``apply`` and ``sparsity`` are read.
        groups: found in a model.

    Returns:
        group name -> configuration, in the groups' order; a group that no target matches, or
        that ``apply.ignore`` names, is absent.

    Raises:
        NoMatchError: a target or an ignore pattern matches no group.
    """
    unmatched = [
        f"apply.ignore[{i}]: {pattern}"
        for i, pattern in enumerate(recipe.apply.ignore)
        if not any(_matches(pattern, group) for group in groups)
    ]
    chosen: dict[str, GateConfig] = {}
    ignored = {
        group.name
        for group in groups
        if any(_matches(pattern, group) for pattern in recipe.apply.ignore)
    }
    for i, target in enumerate(recipe.apply.targets):
        found = [
            group
            for group in groups
            if (
                group.kind == target.kind if target.match is None else _matches(target.match, group)
            )
        ]
        if not found:
            unmatched.append(f"apply.targets[{i}]: {target.match or f'kind {target.kind}'}")
        ratio = recipe.sparsity.final
        if target.keep_ratio is not None:
            ratio = 1.0 - target.keep_ratio
        for group in found:
            if group.name not in ignored:
                chosen.setdefault(group.name, _gate_config(recipe, ratio, target.grain))
    if unmatched:
        raise NoMatchError(_explain(unmatched, groups))
    return {group.name: chosen[group.name] for group in groups if group.name in chosen}


def _gate_config(recipe: Recipe, prune_ratio: float, grain: Grain | None) -> GateConfig:
    gate = recipe.apply.gate
    grain = grain or gate.grain or "instance"
    if gate.choose != "neurons":  # experts choose their own
        grain = "instance"
    order = gate.order
    if gate.choose != "neurons" and order == "dynamic":
        order = "fixed"
    return GateConfig(
        prune_ratio=prune_ratio,
        mode=gate.mode,
        hidden_ratio=gate.hidden_ratio,
        hidden=gate.hidden,
        align=gate.align,
        source=gate.input,
        pool=gate.pool,
        compensation=gate.compensation,
        order=order,
        masked=gate.masked,
        grain=grain,
        predict=gate.predict if grain == "token" else "low-rank",
    )


def _is_aimed_at(target: Target, group: NeuronGroup) -> bool:
    if target.match is None:
        return group.kind == target.kind
    return _matches(target.match, group)


def _matches(pattern: str, group: NeuronGroup) -> bool:
    """Whether a pattern names the group, or one of the modules that produce its neurons."""
    names = (group.name, *(channels.module for channels in group.producers))
    if pattern.startswith("re:"):
        return any(re.fullmatch(pattern[3:], name) for name in names)
    return pattern in names


def _explain(unmatched: Sequence[str], groups: Sequence[NeuronGroup]) -> str:
    """Say which patterns matched nothing, and what there was to match."""
    lines = ["these keys of the recipe match no neuron group of the model:"]
    lines += [f"  {line}" for line in unmatched]
    if not groups:
        lines.append("The model has no neuron groups at all; run dynprune inspect to see why.")
        return "\n".join(lines)
    kinds = {kind: sum(g.kind == kind for g in groups) for kind in ("qk", "v", "ffn")}
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    lines.append(f"It has {len(groups)} groups ({counts}), such as {groups[0].name}.")
    lines.append("Run dynprune inspect to see them all, then mend or remove the keys.")
    return "\n".join(lines)
