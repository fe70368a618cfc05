"""From a dense model to a gated student, and back."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from torch import nn

from dynprune.data import (
    SegmentationData,
    normalise,
)
from dynprune.example import Example
from dynprune.gate import is_gated, remove
from dynprune.graph import find_groups
from dynprune.host.modes import keeping_buffers
from dynprune.models import LoadedModel, Provenance, provenance_of, set_provenance
from dynprune.pipeline.arguments import gate_configs, picture_arguments
from dynprune.planning.removal import drop_dead
from dynprune.planning.session import Aims, gate_in_one_pass
from dynprune.recipe import Recipe, dump_recipe
from dynprune.rewrite import Rewrite, rewrite, undo

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
        ``loaded.module``, gated and in eval mode. Where anything fails it is as it was.

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
        settings = recipe.apply.calibration
        gate_in_one_pass(
            model,
            loaded.example,
            grouping,
            gate_configs(recipe, grouping.groups),
            None if calibration is None else list(calibration),
            Aims(
                saves_time=recipe.apply.target == "latency",
                spreads=recipe.sparsity.distribution == "sensitivity",
                informed=recipe.apply.gate.start == "informed",
                refits=settings.refit,
            ),
            name=loaded.name,
            seed=recipe.runtime.seed,
        )
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


def restore(model: nn.Module) -> nn.Module:
    """Take gates and rewrites out of a model, in place: what is left is dense.

    Returns:
        The model. Untrained, it is the one that was gated, bit for bit; trained, it is the dense
        model with the student's weights.
    """
    if is_gated(model):
        remove(model)
    undo(model)
    known = provenance_of(model)
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
