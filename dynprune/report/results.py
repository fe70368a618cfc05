"""Everything that the report's page shows of one model, measured on one data set."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dynprune.data import Preprocessing, SegmentationData
from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.gate import attached, gate_parameters, is_gated
from dynprune.gate.plan import gated
from dynprune.graph.groups import ancestor
from dynprune.host.modes import at_inference
from dynprune.measure.calls import PictureCalls, TaskCalls, spread
from dynprune.measure.compare import Comparison, compare
from dynprune.measure.executed import executed
from dynprune.measure.macs import ExecutedRange, MacsReport, macs_report
from dynprune.measure.neurons import NeuronReport, neuron_report
from dynprune.measure.overlap import domains_of
from dynprune.models import LoadedModel, provenance_of
from dynprune.models.storage import environment
from dynprune.report.panels import Panel, make_panels
from dynprune.tasks.evaluate import agree_on_classes, output_classes
from dynprune.tasks.task import Exhibit, Scores, Task

__all__ = ["Results", "TaskView", "gather", "gather_task"]

Progress = Callable[..., None]


@dataclass(frozen=True)
class Results:
    """What was measured, and what it was measured with.

    Attributes:
        model: what the user called it.
        teacher: likewise; None where there is none.
        data: what the user called the data set.
        samples: pictures of the split.
        macs: of one call at the model's input size.
        executed: multiply-adds that ran for each picture of a part of the split.
        parts: module -> one of `dynprune.report.blocks.PARTS`.
        comparison: of student and teacher, on the whole split; None where there are no label maps.
        neurons: on the same part of the split as ``executed``.
        panels: a few pictures as the models see them.
        classes: names in index order.
        gate_parameters: that the gates brought with them.
        file_bytes: of the weights of ``student`` and ``teacher``, where they are on disk.
        recipe: the resolved recipe as YAML, or None.
        environment: that the report was made in.
        commands: what was done -> the command line.
        view: scores and samples of another task than segmentation; None where there are label maps.
        split: of the data set; set by who opened it.
        latency: document of ``report latency --json``, or None; set by who timed the model.
    """

    model: str
    teacher: str | None
    data: str
    samples: int
    macs: MacsReport
    executed: tuple[int, ...]
    parts: Mapping[str, str]
    comparison: Comparison | None
    neurons: NeuronReport
    panels: tuple[Panel, ...]
    classes: tuple[str, ...]
    gate_parameters: int
    file_bytes: Mapping[str, int]
    recipe: str | None
    environment: Mapping[str, Any]
    commands: Mapping[str, str]
    view: "TaskView | None" = None
    split: str = "val"
    latency: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain values, without what is said of single neurons."""
        return {
            "model": self.model,
            "teacher": self.teacher,
            "images": self.samples,
            **self._scores(),
            "macs": self.macs.to_json(),
            "executed": list(self.executed),
            "types": self.neurons.counts,
            "overlap": None if self.neurons.overlap is None else self.neurons.overlap.to_json(),
            "bytes": dict(self.file_bytes),
            "latency": self.latency,
        }

    def _scores(self) -> dict[str, Any]:
        if self.comparison is None:
            return {} if self.view is None else self.view.to_json()
        teacher = self.comparison.teacher
        scores = {"teacher": None if teacher is None else teacher.miou}
        return {"miou": {**scores, "student": self.comparison.student.miou}}


@dataclass(frozen=True)
class TaskView:
    """What the page says of a task that has no label maps.

    Attributes:
        task: its name.
        unit: what a sample is called, and several of them.
        compares: whether the scores say how close the student is to its teacher.
        student: its scores.
        teacher: likewise; None where there is none, or the scores are of both together.
        exhibits: a few samples as the models see them.
    """

    task: str
    unit: tuple[str, str]
    compares: bool
    student: Scores
    teacher: Scores | None
    exhibits: tuple[Exhibit, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the scores as plain values."""
        teacher = None if self.teacher is None else dict(self.teacher.figures)
        scores = {"teacher": teacher, "student": dict(self.student.figures)}
        return {"task": self.task, "scores": scores}

    def figures(self) -> list[tuple[str, float | None, float]]:
        """Return every figure's name, the teacher's value and the student's."""
        known = {} if self.teacher is None else self.teacher.figures
        return [
            (self.student.words.get(name, name), known.get(name), value)
            for name, value in self.student.figures.items()
        ]


def gather(
    student: LoadedModel,
    data: SegmentationData,
    *,
    teacher: LoadedModel | None = None,
    images: int | None = None,
    shown: int = 3,
    preprocessing: Preprocessing,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Results:
    """Measure everything that the page shows.

    Args:
        student: gated; left as it came.
        data: scores are those of all its pictures.
        teacher: the dense model that the student came from; may be rewritten.
        images: pictures, evenly over the data, whose neurons and multiply-adds are counted; all
            of them where None.
        shown: pictures to show.
        preprocessing: how pictures go into both models.
        device: where the models are.
        progress: called as ``progress(done, total, part=...)``.

    Raises:
        UsageError: where the student is not gated, or the teacher is.
        InputError: if a sample cannot be read, or a model's classes are not the data's.
    """
    _check(student, teacher)
    tell = _teller(progress)
    first = preprocessing(data.picture(0), device)
    data = agree_on_classes(data, output_classes(student.module, first, preprocessing))
    part = spread(data, images)
    calls = PictureCalls(part, preprocessing, device=device)
    comparison = compare(
        student.module,
        None if teacher is None else teacher.module,
        data,
        preprocessing,
        device=device,
        progress=tell("evaluate"),
    )
    return replace(
        _measured(student, teacher, calls, domains_of(part.images), tell),
        data=str(data.root),
        samples=len(data),
        comparison=comparison,
        panels=make_panels(
            student.module,
            None if teacher is None else teacher.module,
            data,
            comparison.disagreement,
            count=shown,
            preprocessing=preprocessing,
            device=device,
        ),
        classes=data.classes,
    )


def gather_task(
    student: LoadedModel,
    task: Task,
    origin: str,
    *,
    teacher: LoadedModel | None = None,
    images: int | None = None,
    shown: int = 3,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Results:
    """Measure everything that the page shows of a task without label maps.

    Args:
        student: gated; left as it came.
        task: its data, under the model's classes; scores are those of all samples.
        origin: what the user called the data.
        teacher: the dense model that the student came from.
        images: samples, evenly over the data, whose neurons and multiply-adds are counted; all of
            them where None.
        shown: samples to show.
        device: where the models are.
        progress: called as ``progress(done, total, part=...)``.

    Raises:
        UsageError: where the student is not gated, the teacher is, or one is needed and not there.
        InputError: if a sample cannot be read.
    """
    _check(student, teacher)
    if task.compares and teacher is None:
        raise UsageError(
            f"{task.name} has no labels, so that scores say how close a model is to its dense one; "
            "add --teacher MODEL"
        )
    tell = _teller(progress)
    calls = TaskCalls(task, images, device=device)
    dense = None if teacher is None else teacher.module
    scores = task.evaluate(student.module, dense, device=device, progress=tell("evaluate"))
    others = None
    if dense is not None and not task.compares:
        others = task.evaluate(dense, device=device, progress=tell("evaluate the teacher"))
    pictures = task.unit == "images"
    worlds = domains_of(map(Path, calls.names)) if pictures else ()
    unit = ("picture", "pictures") if pictures else (task.unit.removesuffix("s"), task.unit)
    return replace(
        _measured(student, teacher, calls, worlds, tell),
        data=origin,
        samples=len(task),
        view=TaskView(
            task.name,
            unit,
            task.compares,
            scores,
            others,
            tuple(task.exhibits(student.module, dense, count=shown, device=device)),
        ),
        classes=student.classes,
    )


def _check(student: LoadedModel, teacher: LoadedModel | None) -> None:
    if not is_gated(student.module):
        raise UsageError(
            f"{student.name} is dense, and the page is about what gating saves; give a directory "
            "that dynprune apply or distill wrote"
        )
    if teacher is not None and is_gated(teacher.module):
        raise UsageError(f"{teacher.name} is gated; the teacher must be the dense model")


def _teller(progress: Progress | None) -> Callable[[str], Callable[[int, int], None]]:
    def tell(part: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(done, total, part=part) if progress else None

    return tell


def _measured(
    student: LoadedModel,
    teacher: LoadedModel | None,
    calls: Sequence[Example],
    worlds: Sequence[str],
    tell: Callable[[str], Callable[[int, int], None]],
) -> Results:
    """Measure what the page shows of any task."""
    ran = _count(student, calls, tell("count"))
    macs = macs_report(student.module, student.example)
    if all(_shape(call) == macs.input for call in calls):
        macs = replace(macs, executed=ExecutedRange(sum(ran) / len(ran), min(ran), max(ran)))
    return Results(
        model=student.name,
        teacher=None if teacher is None else teacher.name,
        data="",
        samples=0,
        macs=macs,
        executed=tuple(ran),
        parts=_parts(student),
        comparison=None,
        neurons=neuron_report(student.module, calls, worlds=worlds, progress=tell("neurons")),
        panels=(),
        classes=(),
        gate_parameters=sum(p.numel() for p in gate_parameters(student.module)),
        file_bytes=_file_bytes({"student": student, "teacher": teacher}),
        recipe=provenance_of(student.module).recipe,
        environment=environment(),
        commands=_recorded_command(student),
    )


def _count(
    student: LoadedModel, calls: Sequence[Example], tell: Callable[[int, int], None]
) -> list[int]:
    """Count what runs for every picture."""
    ran = []
    with at_inference(student.module), torch.no_grad():
        for index in range(len(calls)):
            ran.append(executed(student.module, calls[index]))
            tell(index + 1, len(calls))
    return ran


def _shape(call: Any) -> tuple[int, ...]:
    return tuple(call.tensors[0].shape)


def _parts(student: LoadedModel) -> dict[str, str]:
    """Say which modules belong to which kind of gated group; the rest is ``other``."""
    parts: dict[str, str] = {}
    for plan in gated(attached(student.module).plans):
        group = plan.group
        members = (*group.producers, *group.carriers, *group.consumers)
        for channels in members:
            parts.setdefault(channels.module, group.kind)
        if group.kind == "qk":  # the products of queries and keys run in the module that holds them
            parts.setdefault(ancestor(group), "qk")
    return parts


def _file_bytes(models: Mapping[str, LoadedModel | None]) -> dict[str, int]:
    """Add up the weights' files, for models that lie in a directory."""
    found = {}
    for role, model in models.items():
        if model is not None and Path(model.name).is_dir():
            files = [path.stat().st_size for path in Path(model.name).glob("*.safetensors")]
            if files:
                found[role] = sum(files)
    return found


def _recorded_command(student: LoadedModel) -> dict[str, str]:
    """Return the command that wrote the model, where its directory tells it."""
    path = Path(student.name) / "environment.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    command = record.get("command") if isinstance(record, dict) else None
    return {"the model": command} if isinstance(command, str) else {}
