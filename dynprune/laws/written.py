"""Laws of files: what was written and read again, or traced, answers as the model does."""

import copy
import shutil
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from dynprune import storage
from dynprune.errors import DynpruneError, UsageError
from dynprune.gate import is_gated
from dynprune.laws.calls import cloned
from dynprune.laws.subject import Case, NotTriedError, Subject, answer
from dynprune.provenance import provenance_of

__all__ = ["compiled", "exported", "saved_and_loaded", "written_as_onnx"]


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
            lambda call=call: answer(loaded(), call),
            partial(subject.run, call),
            own=True,
            exact=True,
        )


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

        def found(call=call) -> list[Tensor]:  # type: ignore[no-untyped-def]
            used = cloned(call)
            program = torch.export.export(
                subject.copy(), used.args, dict(used.kwargs), strict=False
            )
            return answer(program.module(check_guards=False), call)

        yield Case(f"call {number}", found, partial(subject.run, call))


def compiled(subject: Subject) -> Iterator[Case]:
    """A compiled model answers as the model does."""
    for number, call in enumerate((*subject.calls, subject.batch), 1):

        def found(call=call) -> list[Tensor]:  # type: ignore[no-untyped-def]
            torch.compiler.reset()
            try:
                return answer(torch.compile(subject.copy(), backend="eager"), call)
            finally:
                torch.compiler.reset()

        yield Case(f"call {number}", found, partial(subject.run, call))


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
