"""Laws of files: what was written and read again, or traced, answers as the model does."""

import copy
import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from dynprune.errors import DynpruneError, UsageError
from dynprune.example import Example
from dynprune.gate import is_gated
from dynprune.laws.calls import cloned
from dynprune.laws.subject import Case, NotTriedError, Subject, answer
from dynprune.models import storage
from dynprune.models.provenance import provenance_of

__all__ = ["built_anew", "compiled", "exported", "saved_and_loaded", "written_as_onnx"]


def saved_and_loaded(subject: Subject) -> Iterator[Case]:
    """What is saved and loaded again answers with the same bits."""
    try:
        provenance_of(subject.model)
    except UsageError as error:
        raise NotTriedError(f"it is not known how to build the model again: {error}") from error

    @cache
    def loaded() -> nn.Module:
        directory = subject.directory / "saved"
        shutil.rmtree(directory, ignore_errors=True)
        try:
            storage.save(subject.model, directory)
            return storage.load(directory, factory=partial(_blank, subject.dense))
        except DynpruneError as error:
            raise _UnreadableError(f"what was saved does not load: {error}") from error

    for number, call in enumerate((*subject.calls, subject.batch), 1):
        yield Case(
            f"call {number}",
            partial(_of_loaded, loaded, call),
            partial(subject.run, call),
            own=True,
            exact=True,
        )


def _of_loaded(loaded: Callable[[], nn.Module], call: Example) -> list[Tensor]:
    return answer(loaded(), call)


class _UnreadableError(Exception):
    """A file that dynprune wrote and cannot read."""


def _blank(dense: nn.Module) -> nn.Module:
    """Return the dense architecture with other weights: the right ones are in the file."""
    model = copy.deepcopy(dense)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator).to(parameter))
    return model


def exported(subject: Subject) -> Iterator[Case]:
    """A program of torch.export answers as the model does."""
    for number, call in enumerate((*subject.calls, subject.batch), 1):
        yield Case(f"call {number}", partial(_exported, subject, call), partial(subject.run, call))


def _exported(subject: Subject, call: Example) -> list[Tensor]:
    used = cloned(call)
    with torch.no_grad():
        program = torch.export.export(subject.copy(), used.args, dict(used.kwargs), strict=False)
    return answer(program.module(), call)


def compiled(subject: Subject) -> Iterator[Case]:
    """A compiled model answers as the model does, for inputs of every size in turn."""
    calls = (*subject.calls, subject.batch)

    def found() -> list[Tensor]:
        torch.compiler.reset()
        try:
            model = subject.copy()
            model.compile(backend="eager")
            return [tensor for call in calls for tensor in answer(model, call)]
        finally:
            torch.compiler.reset()

    yield Case("every call", found, lambda: [t for call in calls for t in subject.run(call)])


def built_anew(subject: Subject) -> Iterator[Case]:
    """What is restored is the architecture that is built anew, with its weights."""
    anew = subject.anew
    if anew is None:
        raise NotTriedError(subject.why_not_anew or "the model was not built a second time")
    for number, call in enumerate((*subject.calls, subject.batch), 1):
        dense, again = partial(subject.run, call, subject.dense), partial(subject.run, call, anew)
        yield Case(f"call {number}", dense, again, own=True)


def written_as_onnx(subject: Subject) -> Iterator[Case]:
    """An ONNX file, where the model is gated still dynamic, answers as the model does."""
    try:
        from dynprune.export.onnx import TOLERANCES, export_onnx
    except ImportError as error:
        raise NotTriedError(f"the package {error.name} is not installed") from error

    def found() -> list[Tensor]:
        path: Path = subject.directory / f"model{'' if is_gated(subject.model) else '.dense'}.onnx"
        written = export_onnx(subject.model, subject.calls[0], path, overwrite=True)
        return [torch.tensor(1.0 + written.max_error)]

    yield Case("onnxruntime", found, lambda: [torch.tensor(1.0)], tolerance=TOLERANCES["fp32"])
