"""From a dense model to a gated student, and back."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from torch import nn

from dynprune.data import Preprocessing, SegmentationData
from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.gate import attached, is_gated, remove
from dynprune.gate.config import Importance
from dynprune.gate.forms import put_forms
from dynprune.gate.predictor import PredictorFactory
from dynprune.graph import RULES, Rule, find_groups
from dynprune.laws import note_dense
from dynprune.models import LoadedModel, Provenance, provenance_of, records_of, set_provenance
from dynprune.models.provenance import known_provenance, without_place
from dynprune.pipeline.arguments import gate_configs
from dynprune.pipeline.check import require_laws
from dynprune.pipeline.experts import ExpertPlan, plan_experts, record_of_choice
from dynprune.pipeline.pictures import preprocessing_of
from dynprune.planning.refit import refit_consumers
from dynprune.planning.removal import drop_dead
from dynprune.planning.sequential import refit_in_sequence
from dynprune.planning.session import Aims, gate_in_one_pass
from dynprune.recipe import Recipe, dump_recipe
from dynprune.rewrite import Rewrite, count_made, rewrite, undo
from dynprune.rewrite.cuts import refuse_fixed
from dynprune.rewrite.narrow import why_narrow

__all__ = ["apply_recipe", "calibration_calls", "restore"]

logger = logging.getLogger(__name__)


def apply_recipe(
    loaded: LoadedModel,
    recipe: Recipe,
    *,
    calibration: Iterable[Example] | None = None,
    predictor: PredictorFactory | None = None,
    importance: Importance | None = None,
    rules: Mapping[str, Rule] = RULES,
) -> nn.Module:
    """Rewrite and gate a dense model, in place.

    Args:
        loaded: the dense model.
        recipe: its ``rewrite``, ``apply`` and ``sparsity`` are carried out.
        calibration: inputs from which order, means and predictors start; the weights alone give
            an order where None.
        predictor: makes the gates' predictors; dynprune's own where None.
        importance: of neurons, by which calibration orders them; dynprune's own where None.
        rules: what each operation does to neurons, by its ATen name.

    Returns:
        ``loaded.module`` in eval mode, gated; with ``apply.gate.choose: fixed`` it has narrow plain
        layers and no gates, with ``experts`` or ``auto`` such layers and experts. Where
        anything fails it is as it was.

    Raises:
        NoMatchError: where a target matches nothing, or no group at all can be gated.
        LawError: where the gated model is not the dense one with nothing skipped, or a small call
            shows that it would be wrong otherwise.
        UsageError: where ``predictor`` or ``importance`` is not what it should be, or could have
            no effect, or neurons were removed from the model for good before.
    """
    model = loaded.module
    _check_own(recipe, calibration, predictor, importance)
    _check_ungated(model)
    calibration = None if calibration is None else list(calibration)
    made = count_made(model)
    choose = recipe.apply.gate.choose
    fixes = choose != "neurons"
    try:
        removed = _without_dead(loaded, recipe, calibration or (), rules)
        note = note_dense(model, loaded.example)
        rewrites = [*removed, *rewrite(model, loaded.example, recipe.rewrite)]
        grouping = find_groups(model, loaded.example, rules=rules)
        informed = recipe.apply.gate.start == "informed"
        configs = {
            name: replace(config, predictor=predictor, importance=importance)
            for name, config in gate_configs(recipe, grouping.groups).items()
        }
        gate_in_one_pass(
            model,
            loaded.example,
            grouping,
            configs,
            calibration,
            Aims(
                saves_time=recipe.apply.target == "latency",
                spreads=recipe.sparsity.distribution == "sensitivity",
                informed=informed,
                fixes=fixes,
            ),
            name=loaded.name,
            seed=recipe.runtime.seed,
        )
        require_laws(model, note, whole=True)
        plan = ExpertPlan()
        if choose in ("experts", "auto"):
            plan = plan_experts(model, loaded.example, recipe.apply.gate, calibration)
        refitted = _refit(model, recipe, calibration, plan)
        if refitted:
            require_laws(model, note, whole=False)
        if fixes:
            rewrites += put_forms(model, loaded.example, plan.settled())[0]
            rewrites += record_of_choice(plan.bought)
    except BaseException:
        _take_back(model, made, untrained=True)
        raise
    set_provenance(
        model,
        Provenance(
            source=loaded.source,
            name=loaded.name,
            input_shape=tuple(loaded.example.tensors[0].shape),
            classes=loaded.classes,
            rewrites=tuple(rewrites),
            recipe=dump_recipe(_without_places(recipe)),
            processor=loaded.processor,
            refitted=refitted,
        ),
    )
    return model.eval()


def _refit(
    model: nn.Module, recipe: Recipe, calls: Sequence[Example] | None, plan: ExpertPlan
) -> int:
    """Refit what reads the neurons where the recipe or the experts ask for it, in place.

    Returns:
        The layers that were refitted: what is dense has changed where there are any.
    """
    apply = recipe.apply
    refit = apply.calibration.refit or bool(plan.bought)
    if calls is None or apply.gate.start != "informed" or not refit:
        return 0
    if refit == "sequential":
        refitted = refit_in_sequence(model, calls, seats=plan.seats).layers
    else:
        refitted = refit_consumers(model, calls)
    logger.info("Refitted %d layers that read gated neurons.", refitted)
    return refitted


def _check_ungated(model: nn.Module) -> None:
    """Refuse a model that was gated or narrowed before anything is changed."""
    refuse_fixed(records_of(model))
    if is_gated(model):  # a failure later on would take its gates out
        raise UsageError("The model is gated already: call dynprune.restore first.")


def _check_own(
    recipe: Recipe,
    calibration: Iterable[Example] | None,
    predictor: PredictorFactory | None,
    importance: Importance | None,
) -> None:
    """Refuse functions of the user's own that nothing would call."""
    gate = recipe.apply.gate
    if importance is not None and (calibration is None or gate.start != "informed"):
        raise UsageError(
            "importance reads what neurons do on inputs, and none are measured: give calibration, "
            "and a recipe with apply.gate.start: informed"
        )
    if importance is not None and gate.predict != "low-rank":
        raise UsageError(
            "importance would not be asked: the recipe has apply.gate.predict: "
            f"{gate.predict}, which orders neurons by what they are expected to be"
        )
    if predictor is not None and gate.predict != "low-rank":
        raise UsageError(
            f"predictor would not be asked: the recipe has apply.gate.predict: {gate.predict}"
        )
    if predictor is not None and (gate.order != "dynamic" or gate.choose != "neurons"):
        what = f"order: {gate.order}" if gate.choose == "neurons" else f"choose: {gate.choose}"
        raise UsageError(f"predictor would not be asked: the recipe has apply.gate.{what}")


def _without_dead(
    loaded: LoadedModel,
    recipe: Recipe,
    calls: Sequence[Example],
    rules: Mapping[str, Rule],
) -> list[Rewrite]:
    """Remove neurons of type III where the recipe asks for it, in place."""
    if not recipe.apply.drop_dead:
        return []
    found = find_groups(loaded.module, loaded.example, rules=rules).groups
    align = recipe.apply.gate.align
    removed = drop_dead(loaded.module, loaded.example, found, calls, align=align)
    gone = sum(len(record.details["dead"]) for record in removed)
    logger.info("Removed %d neurons of type III.", gone)
    return removed


def _without_places(recipe: Recipe) -> Recipe:
    """Return the recipe as it may be written beside a model: no path of this machine is in it."""
    if recipe.model is None or recipe.model.weights is None:
        return recipe
    weights = without_place(recipe.model.weights)
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"weights": weights})})


def _take_back(model: nn.Module, made: int = 0, *, untrained: bool = False) -> None:
    """Take gates and rewrites out of a model, the latest change first, in place."""
    if is_gated(model):
        undo(model, max(made, attached(model).made))  # what was refitted, while it is gated
        remove(model, untrained=untrained)
    undo(model, made)


def restore(model: nn.Module, *, keep_refitted: bool = False) -> nn.Module:
    """Take gates and rewrites out of a model, in place: what is left is dense.

    Args:
        model: gated or rewritten.
        keep_refitted: take the weights that `apply` refitted for the dense ones, where the model
            was loaded from files, in which the dense ones are not.

    Returns:
        The model. Untrained, it is the one that was gated, bit for bit; trained, it is the dense
        model with the student's weights.

    Raises:
        UsageError: groups were fixed, or the model was loaded from files, and its dense weights
            are not in them; the model is untouched.
    """
    known = known_provenance(model)
    if known is None and not is_gated(model):
        return model  # dynprune never changed it
    known = known or provenance_of(model)
    refuse_fixed(known.rewrites)
    if known.from_files:
        if (gone := why_narrow(known.rewrites)) is not None:
            raise UsageError(
                f"{gone} were removed permanently before this model was written, so its files hold "
                f"no dense weights. Load the dense model that it was made from ({known.name})."
            )
        if known.refitted and not known.steps and not keep_refitted:
            raise UsageError(
                f"{known.refitted} layers of this model were refitted before it was written, so "
                "its files hold no dense weights. Load the dense model that it was made from "
                f"({known.name}), or give keep_refitted=True to go on with the refitted weights."
            )
    _take_back(model)
    set_provenance(model, replace(known, rewrites=(), recipe=None, refitted=0))
    return model


def calibration_calls(
    data: SegmentationData,
    recipe: Recipe,
    preprocessing: Preprocessing | None = None,
    *,
    device: str = "cpu",
) -> Iterator[Example]:
    """Yield the calls that calibration runs: pictures, evenly over the data.

    Args:
        data: the pictures.
        recipe: tells how many.
        preprocessing: how they go in; as the recipe says by default.
        device: where the model is.
    """
    count = min(recipe.apply.calibration.images, len(data))
    preprocessing = preprocessing or preprocessing_of(recipe)
    for position in range(count):
        yield Example((preprocessing(data.picture(position * len(data) // count), device),))
