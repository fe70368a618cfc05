"""The Python interface: inspect, apply, check, restore, save and load, on any module."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dynprune import pipeline
from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.gate.config import Importance
from dynprune.gate.predictor import PredictorFactory
from dynprune.graph import RULES, Rule
from dynprune.host.wrappers import unwrapped
from dynprune.models import LoadedModel, ModelSource, classes_of, provenance_of, source_of
from dynprune.models import storage as files
from dynprune.models.processor import processor_beside
from dynprune.recipe import Recipe, load_recipe

__all__ = ["ExampleLike", "apply", "check", "inspect", "load", "restore", "save"]

ExampleLike = Example | Tensor | tuple[Any, ...] | Mapping[str, Any]
"""One call of a model: a tensor, a tuple of arguments, or a mapping of keyword arguments."""


def inspect(
    model: nn.Module,
    example: ExampleLike,
    recipe: Recipe | str | Path | None = None,
    *,
    rules: Mapping[str, Rule] = RULES,
) -> pipeline.Inspection:
    """Find a model's neuron groups and the mode in which each would run; changes nothing.

    Args:
        model: any module.
        example: one call of it, batch first.
        recipe: whose targets count; a name, a file or a `Recipe`. Every group where None.
        rules: what each operation does to neurons, by its ATen name; see `dynprune.graph.RULES`.

    Raises:
        NoMatchError: where a pattern of the recipe matches nothing.

    Example:
        >>> import torch
        >>> mlp = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
        >>> [(p.group.kind, p.group.neurons, p.mode) for p in inspect(mlp, torch.randn(2, 8)).plans]
        [('ffn', 32, 'compact')]
    """
    loaded = _loaded(unwrapped(model), example)
    return pipeline.inspect_model(loaded, _recipe(recipe), rules=rules)


def apply(
    model: nn.Module,
    example: ExampleLike,
    recipe: Recipe | str | Path,
    *,
    calibration: ExampleLike | Iterable[ExampleLike] | None = None,
    inplace: bool = True,
    predictor: PredictorFactory | None = None,
    importance: Importance | None = None,
    rules: Mapping[str, Rule] = RULES,
) -> nn.Module:
    """Gate a model: for every input it computes only the neurons that the input needs.

    Args:
        model: any dense module; inside DataParallel, DistributedDataParallel or `torch.compile`
            it is gated where it stands.
        example: one call of it, batch first.
        recipe: a name, a file or a `Recipe`.
        calibration: a few calls with real inputs, from which the gates start; one alone, a tensor
            or a mapping, is one call.
        inplace: change ``model`` itself; a copy where false, without what wraps it.
        predictor: makes each gate's predictor from (features, neurons), as
            `dynprune.gate.predictor.PredictorFactory` says; dynprune's own where None. `load` needs
            it again.
        importance: of a group's neurons, from what they did on the calibration inputs, as
            `dynprune.gate.config.Importance` says; dynprune's own where None.
        rules: what each operation does to neurons, by its ATen name; see `dynprune.graph.RULES`.

    Returns:
        The gated model, in eval mode; it is called as before.

    Raises:
        NoMatchError: where a pattern matches nothing, or nothing can be gated.
        UsageError: where its layers do not hold its weights: shards, adapters, offloaded ones; or
            where ``predictor`` or ``importance`` gives what cannot be one, or could have no effect.
    """
    given, model = model, unwrapped(model)
    chosen = _recipe(recipe)
    if chosen is None:
        raise UsageError("apply needs a recipe: a name such as 'segformer-b0', a file, or a Recipe")
    if not inplace:
        given = model = _copied(model)
    calls = None if calibration is None else _examples(calibration)
    pipeline.apply_recipe(
        _loaded(model, example),
        chosen,
        calibration=calls,
        predictor=predictor,
        importance=importance,
        rules=rules,
    )
    return given


def check(
    model: nn.Module, calls: ExampleLike | Iterable[ExampleLike], *, export: bool = False
) -> pipeline.CheckReport:
    """Hold a model to the laws of pruning on your own inputs, beside its dense form.

    Nothing skipped equals dense, compact equals masked, rows, padding, threads, precision, files
    and more: every law is tried on copies, and only where the dense model has it.

    Args:
        model: gated, rewritten or dense; it stays as it is.
        calls: one call, or a few of them in a list or tuple, as for ``calibration``; batch first.
        export: try torch.export, torch.compile and ONNX, too.

    Returns:
        The verdicts; ``.broken`` holds those of broken laws.

    Raises:
        InputError: where the dense model does not answer a call.
        UsageError: where there is no call.

    Example:
        >>> import torch
        >>> mlp = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
        >>> gated = apply(mlp, torch.randn(2, 8), "any")
        >>> report = check(gated, [torch.randn(2, 8), torch.randn(5, 8)])
        >>> [(verdict.name, verdict.status) for verdict in report.verdicts[:2]]
        [('nothing skipped equals dense', 'ok'), ('compact equals masked', 'ok')]
    """
    given = list(_examples(calls))
    if not given:
        raise UsageError("check needs a call of the model: a tensor, a mapping, or a list of calls")
    return pipeline.check_model(_loaded(unwrapped(model), given[0]), given, export=export)


def restore(model: nn.Module, *, keep_refitted: bool = False) -> nn.Module:
    """Take gates and rewrites out again, in place: an untrained model gets its own bits back.

    Args:
        model: gated or rewritten; trained weights stay as they are.
        keep_refitted: take refitted weights for dense ones where the model was loaded from files.

    Raises:
        UsageError: the dense weights are not in the files that the model was loaded from.
    """
    pipeline.restore(unwrapped(model), keep_refitted=keep_refitted)
    return model


def save(model: nn.Module, directory: str | Path, *, overwrite: bool = False) -> Path:
    """Write a model as safetensors with a manifest, whole or not at all.

    Raises:
        OutputError: where the directory cannot be written.
        UsageError: where it is not known how to build the model again, or what wraps it holds
            shards or adapters.
    """
    model = unwrapped(model)
    return files.save(model, directory, overwrite=overwrite, provenance=provenance_of(model))


def load(
    directory: str | Path,
    *,
    factory: Callable[[], nn.Module] | None = None,
    predictor: PredictorFactory | None = None,
) -> nn.Module:
    """Load what `save` wrote.

    Args:
        directory: that `save` wrote.
        factory: makes the dense architecture; for models that are not from transformers.
        predictor: that `apply` was given, where it was given one; code that a file names is never
            run.

    Raises:
        InputError: where files are missing or damaged, or need a predictor that was not given.
        UsageError: where ``predictor`` is given, and the gates have dynprune's own.
    """
    return files.load(directory, factory=factory, predictor=predictor)


def _copied(model: nn.Module) -> nn.Module:
    """Copy a model, unless a part of the copy would still run the model itself."""
    copied = copy.deepcopy(model)
    for (name, old), new in zip(model.named_modules(), copied.modules(), strict=True):
        if "forward" in vars(old) and vars(new)["forward"] is vars(old)["forward"]:
            raise UsageError(
                f"{name or type(model).__name__} has a forward of its own on the instance, which a "
                "copy would share with the model. Give inplace=True, or take it off first."
            )
    return copied


def _example(example: ExampleLike) -> Example:
    if isinstance(example, Example):
        return example
    if isinstance(example, Mapping):
        return Example((), dict(example))
    return Example(example if isinstance(example, tuple) else (example,))


def _examples(calls: ExampleLike | Iterable[ExampleLike]) -> Iterator[Example]:
    """Yield calls: a tensor or a mapping is one, and its rows or names are none."""
    if isinstance(calls, (Example, Tensor, Mapping)):
        yield _example(calls)
    else:
        yield from (_example(call) for call in calls)


def _recipe(recipe: Recipe | str | Path | None) -> Recipe | None:
    return recipe if recipe is None or isinstance(recipe, Recipe) else load_recipe(recipe)


def _loaded(model: nn.Module, example: ExampleLike) -> LoadedModel:
    try:
        source = source_of(model)
    except UsageError:  # a module of the user's own: they bring its factory when they load it
        kind = type(model)
        source = ModelSource("factory", factory=f"{kind.__module__}:{kind.__qualname__}")
    return LoadedModel(
        model,
        _example(example),
        source,
        classes_of(model),
        type(model).__name__,
        processor_beside(model),
    )
