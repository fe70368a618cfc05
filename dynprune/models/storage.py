"""Write a model as safetensors with a manifest, and load it where only the package is."""

import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model as load_weights
from safetensors.torch import save_model as save_weights
from torch import nn

from dynprune.errors import DynpruneError, InputError, OutputError, UsageError
from dynprune.files import written_directory
from dynprune.gate import GroupPlan, attached, fold_means, gates, inject, is_gated
from dynprune.gate.expert_record import experts_again
from dynprune.gate.expert_rows import rows_in_place, shared_rows, spread_rows, stacks
from dynprune.gate.predictor import PredictorFactory
from dynprune.models.card import model_card
from dynprune.models.limits import check_numbers, first_line, read_header
from dynprune.models.manifest import MANIFEST, SCHEMA, is_as_written, read_manifest, sealed
from dynprune.models.processor import PROCESSOR_FILE, read_processor_file
from dynprune.models.provenance import Provenance, provenance_of, set_provenance, without_place
from dynprune.models.source import ModelSource, build
from dynprune.rewrite import Rewrite, reapply
from dynprune.rewrite.cuts import PUT_EXPERTS

__all__ = ["environment", "load", "save", "write_model"]

WEIGHTS = "model.safetensors"
OFFSET = ".offset"  # how the buffers that hold folded means are called
CARD = "README.md"
_LEAST_WIDEST = 1024
_SLACK = 1 << 20  # parameters that an architecture may have and its rewritten form need not


def save(
    model: nn.Module,
    directory: str | Path,
    *,
    overwrite: bool = False,
    provenance: Provenance | None = None,
) -> Path:
    """Write a model to a directory that `load` reads, whole or not at all.

    Args:
        model: gated, rewritten or dense.
        directory: new or empty.
        overwrite: replace the model that is in it.
        provenance: where the model came from; by default what is known of it.

    Raises:
        OutputError: where the directory cannot be written.
        UsageError: where it is not known how to build the model again.
    """
    directory = Path(directory)
    if provenance is not None:
        set_provenance(model, provenance)
    strange = directory.is_dir() and any(directory.iterdir())
    if overwrite and strange and not (directory / MANIFEST).is_file():
        raise OutputError(
            f"{directory} holds no {MANIFEST}, so it is no model of dynprune's and is not "
            "replaced; choose another directory, or empty it yourself."
        )
    with written_directory(directory, overwrite=overwrite) as beside:
        write_model(model, beside)
    return directory


def write_model(
    model: nn.Module,
    directory: Path,
    *,
    scores: Mapping[str, float] | None = None,
    steps: int | None = None,
) -> None:
    """Write a model's files, its card among them, into an existing directory.

    Args:
        model: gated, rewritten or dense.
        directory: that exists.
        scores: of the last validation, for the card.
        steps: optimizer steps of its training, for the card.
    """
    provenance = provenance_of(model)
    plans = attached(model).plans if is_gated(model) else ()
    manifest = {
        "schema": SCHEMA,
        "name": without_place(provenance.name),
        "source": provenance.source.to_json(),
        "input": list(provenance.input_shape),
        "classes": list(provenance.classes),
        "rewrites": [record.to_json() for record in provenance.rewrites],
        "groups": [plan.to_json() for plan in plans],
        "prune_ratios": {name: gate.prune_ratio for name, gate in gates(model).items()},
        **_own_predictor(plans),
        "refitted": provenance.refitted,
        "steps": steps or provenance.steps,
        **_types(model),
        "versions": _versions(),
    }
    with rows_in_place(model, shared_rows(model)):
        save_weights(model, str(directory / WEIGHTS), metadata={"format": "pt"})
    (directory / WEIGHTS).chmod(0o644)  # safetensors makes it readable by its owner alone
    _write_json(directory / MANIFEST, sealed(manifest))
    _write_json(directory / "environment.json", environment())
    if provenance.source.kind == "transformers":
        config = {"architectures": [provenance.source.architecture]}
        _write_json(directory / "config.json", {**(provenance.source.config or {}), **config})
    if provenance.processor is not None:
        _write_json(directory / PROCESSOR_FILE, provenance.processor)
    card = model_card(model, provenance, plans, scores=scores, steps=steps)
    (directory / CARD).write_text(card, encoding="utf-8")
    if provenance.recipe is not None:
        (directory / "recipe.yaml").write_text(provenance.recipe, encoding="utf-8")


def load(
    directory: str | Path,
    *,
    factory: Callable[[], nn.Module] | str | None = None,
    predictor: PredictorFactory | None = None,
) -> nn.Module:
    """Load what `save` wrote: no tracing, no recipe and no training code takes part.

    Args:
        directory: that `save` wrote.
        factory: the function that makes the architecture, for a model that is not from
            transformers; code that a file names is never run.
        predictor: the function that makes the gates' predictors, where they are the user's own.

    Returns:
        The model in eval mode; a gated one runs compactly.

    Raises:
        InputError: where files are missing, damaged or do not belong together, or need a predictor
            that was not given.
        UsageError: where ``predictor`` is given, and the gates have dynprune's own.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    _check_predictor(manifest, predictor, directory)
    header = read_header(directory / WEIGHTS)
    try:
        provenance = _read_provenance(manifest, directory)
        # No group is larger than the largest tensor in which its neurons' weights lie.
        widest = max(header.widest, _LEAST_WIDEST)
        check_numbers(manifest["groups"], where="a group", most=widest)
        plans = [
            _with_predictor(GroupPlan.from_json(record), predictor) for record in manifest["groups"]
        ]
        ratios = {str(name): float(r) for name, r in manifest["prune_ratios"].items()}
        most = 4 * header.elements + _SLACK
        model = build(provenance.source, factory=factory, most=most)
        reapply(model, [r for r in provenance.rewrites if r.name != PUT_EXPERTS])
        experts_again(model, provenance.rewrites)
        if plans:
            inject(model, plans)
            for name, ratio in ratios.items():
                gates(model)[name].set_prune_ratio(ratio)
        _give_types(model, str(manifest["dtype"]), manifest.get("dtypes", {}))
    except InputError as error:
        raise InputError(f"{directory / MANIFEST}: {error}") from error
    except Exception as error:  # of records that somebody wrote; our own are raised again
        if is_as_written(manifest) and not isinstance(error, DynpruneError):
            raise  # nobody changed what we wrote, so this is a fault of ours
        raise InputError(
            f"{directory / MANIFEST} does not describe a model that can be built: "
            f"{type(error).__name__}: {first_line(error)}. Write it again with dynprune apply."
        ) from error
    _load_weights(model, directory / WEIGHTS)
    set_provenance(model, provenance)
    return model.eval()


def _own_predictor(plans: Sequence[GroupPlan]) -> dict[str, str]:
    """Name the function of the user's own that makes the gates' predictors, where there is one."""
    for plan in plans:
        if plan.mode != "refused" and (made := plan.config.predictor) is not None:
            kind = made if hasattr(made, "__qualname__") else type(made)
            return {"predictor": f"{kind.__module__}:{kind.__qualname__}"}
    return {}


def _check_predictor(
    manifest: Mapping[str, Any], predictor: PredictorFactory | None, directory: Path
) -> None:
    """Refuse a model without the predictor that it needs, or with one that it does not."""
    named = manifest.get("predictor")
    if named is not None and predictor is None:
        raise InputError(
            f"the gates of {directory} have a predictor of their author's own ({str(named)[:80]}), "
            "which no file holds: load it in Python, with dynprune.load(..., predictor=...)"
        )
    if named is None and predictor is not None:
        raise UsageError(
            f"predictor was given, but the gates of {directory} have dynprune's own or none: load "
            "it without"
        )


def _with_predictor(plan: GroupPlan, predictor: PredictorFactory | None) -> GroupPlan:
    return replace(plan, config=replace(plan.config, predictor=predictor))


def _types(model: nn.Module) -> dict[str, Any]:
    """Return the type of a model's numbers, and of those tensors that have another one."""
    most = _name_of(next(model.parameters()).dtype)
    others = {
        name: _name_of(tensor.dtype)
        for name, tensor in _floats(model)
        if _name_of(tensor.dtype) != most
    }
    return {"dtype": most, "dtypes": others}


def _give_types(model: nn.Module, most: str, others: Mapping[str, str]) -> None:
    """Set every tensor of a model, in place, to the type that `_types` told."""
    for name, tensor in _floats(model):
        dtype = getattr(torch, str(others.get(name, most)))
        if tensor.dtype != dtype:
            tensor.data = tensor.data.to(dtype)


def _floats(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_floating_point():
            yield name, tensor


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def environment() -> dict[str, Any]:
    """Return what a result was made with: versions, processor and threads."""
    return {
        **_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in ("dynprune", "torch", "transformers", "safetensors"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _read_provenance(manifest: Mapping[str, Any], directory: Path) -> Provenance:
    recipe = directory / "recipe.yaml"
    return Provenance(
        source=ModelSource.from_json(manifest["source"]),
        name=str(manifest["name"]),
        input_shape=tuple(int(n) for n in manifest["input"]),
        classes=tuple(str(name) for name in manifest["classes"]),
        rewrites=tuple(Rewrite.from_json(record) for record in manifest["rewrites"]),
        recipe=recipe.read_text(encoding="utf-8") if recipe.is_file() else None,
        processor=read_processor_file(directory),
        refitted=int(manifest.get("refitted", 0)),
        steps=int(manifest.get("steps", 0)),
        from_files=True,
    )


def _load_weights(model: nn.Module, path: Path) -> None:
    try:
        rows = _rows_once(model, path)
        with rows_in_place(model, rows):
            missing, unexpected = load_weights(model, str(path), strict=False)
        spread_rows(model, rows)
        if unexpected or any(not name.endswith(OFFSET) for name in missing):
            raise RuntimeError(f"its tensors are not the model's: {[*missing, *unexpected][:3]}")
        if missing:  # files of earlier versions hold the means alone
            fold_means(model)
    except (SafetensorError, RuntimeError, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{path} is damaged or belongs to another model: {first[:200]}. "
            "Copy the directory again, or write it again with dynprune apply."
        ) from error


def _rows_once(model: nn.Module, path: Path) -> dict[str, torch.Tensor]:
    """Return room for the rows that a file holds once for all experts that share them."""
    room = {}
    with safe_open(str(path), framework="pt") as file:
        named = set(file.keys())
        for name, index in stacks(model).items():
            stack, shape = model.get_parameter(name), None
            if name in named:
                shape = tuple(file.get_slice(name).get_shape())
            if shape == (len(index.unique()), *stack.shape[2:]):
                room[name] = stack.detach().new_empty(shape)
    return room


def _write_json(path: Path, record: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(record, indent=1, sort_keys=False) + "\n", encoding="utf-8")
