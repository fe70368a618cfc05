"""Run one model in several engines, and time all of its forms in all of them together."""

import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.export.program import Target, compact
from dynprune.measure.executed import executed
from dynprune.measure.latency import FORMS, EngineLatency, LatencyReport, Run, interleaved
from dynprune.measure.macs import as_published, without_gates

__all__ = ["ENGINES", "RUNNERS", "Runner", "Subject", "latency_report"]

EngineName = Literal[
    "torch", "onnxruntime", "onnxruntime-int8", "openvino", "openvino-bf16", "openvino-int8"
]
ENGINES: tuple[EngineName, ...] = (
    "torch",
    "onnxruntime",
    "onnxruntime-int8",
    "openvino",
    "openvino-bf16",
    "openvino-int8",
)

Arithmetic = Literal["f32", "bf16"]


@dataclass(frozen=True)
class Subject:
    """One form of a model, its call, and the files that were already made of it.

    Attributes:
        model: dense, rewritten or pruned, ready for inference.
        example: the call.
        directory: for files that an engine reads; it goes when the report is done.
        as_published: whether files keep the model's own norms, as the dense form's do.
        form: ``dense``, ``rewritten`` or ``pruned``.
        notes: sentences for the report on how an engine runs it.
    """

    model: nn.Module
    example: Example
    directory: Path
    as_published: bool
    form: str = "pruned"
    notes: list[str] = field(default_factory=list)

    def onnx_file(self, target: Target, arithmetic: Arithmetic = "f32") -> Path:
        """Convert the model unless that was done."""
        import onnx

        from dynprune.export.onnx import onnx_model
        from dynprune.export.passes.bfloat16 import gathered_in_bfloat16

        path = self.directory / f"{id(self.model)}-{target}-{arithmetic}.onnx"
        if not path.exists():
            proto, _ = onnx_model(
                self.model,
                self.example,
                target=target,
                fixed_size=True,
                as_published=self.as_published,
            )
            onnx.save(gathered_in_bfloat16(proto) if arithmetic == "bf16" else proto, path)
        return path

    def int8_file(self, target: Target) -> Path:
        """Quantise the model's file, to be timed alone, and note what does not run in int8.

        Products with gathered weights stay in float32: no engine quantises them. OpenVINO 2026.4
        does not survive compiling a quantised file that holds any, so there the whole form does.
        """
        import onnx

        from dynprune.export.int8 import Calibration, quantised
        from dynprune.export.products import depthwise_of, gathered_of, products_of

        source = self.onnx_file(target)
        path = source.with_suffix(".int8.onnx" if target == "onnxruntime" else ".int8.xml")
        proto = onnx.load(source)
        gathered = gathered_of(proto)
        if gathered and target == "openvino":
            self.notes.append(
                f"openvino-int8 cannot hold the {self.form} form, whose weights are gathered for "
                f"every input: {self.form}_ms is of fp32; fixed groups (apply.gate.choose: fixed) "
                "run in int8"
            )
            return source
        never = {*gathered, *(depthwise_of(proto) if target == "openvino" else ())}
        calls = [self.example, self.example.batched(self.example.batch, seed=1)]
        quantised(
            source,
            path,
            products_of(proto),
            Calibration(calls, quick=True),
            "onnxruntime" if target == "onnxruntime" else "nncf",
            never=tuple(never),
        )
        if gathered:
            self.notes.append(
                f"{target}-int8 runs {len(gathered)} of {len(products_of(proto))} products of the "
                f"{self.form} form in fp32: their weights are gathered for every input, which the "
                "engine does not do in int8; fixed groups (apply.gate.choose: fixed) run in int8"
            )
        return path


Runner = Callable[[Subject, int], Run]
"""Prepares a form of a model for an engine and a number of threads, and gives one inference."""


def latency_report(
    model: nn.Module,
    example: Example,
    engines: Sequence[str] | Mapping[str, Runner] = ("torch",),
    *,
    runs: int = 15,
    warmup: int = 3,
    threads: int = 0,
    counts: Callable[[], bool] | None = None,
) -> LatencyReport:
    """Time the dense, rewritten and pruned forms of a model in one interleaved series.

    Files are made for the example's size, as for a camera: engines plan better for a known size.

    Args:
        model: gated or not, rewritten or not; left as it is.
        example: the call; on the CPU, where all engines run.
        engines: names of `ENGINES`; or name -> runner, an engine of one's own or of `RUNNERS`.
        runs: timed runs of every form in every engine.
        warmup: untimed runs before.
        threads: of one inference; 0 takes torch's number.
        counts: whether a run counts, as `interleaved` has it.

    Raises:
        UsageError: an engine is unknown, or the model cannot be exported for one.
    """
    runners = engines if isinstance(engines, Mapping) else _known(engines)
    rewritten = without_gates(model)
    forms = {"dense": as_published(rewritten), "rewritten": rewritten, "pruned": model}
    macs = {}
    for form, subject in forms.items():
        with compact(subject):
            macs[form] = executed(subject, example)
    threads = threads or _threads()
    with ExitStack() as stack:
        stack.enter_context(_torch_threads(threads))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        timed: dict[str, Run] = {}
        notes: list[str] = []
        for form, subject in forms.items():
            for engine, runner in runners.items():
                ready = Subject(
                    subject, example, directory, form == "dense", form=form, notes=notes
                )
                timed[f"{engine}/{form}"] = runner(ready, threads)
        for subject in forms.values():
            stack.enter_context(compact(subject))
        with torch.inference_mode():
            times = interleaved(timed, repeats=runs, warmup=warmup, counts=counts)
    return LatencyReport(
        device=platform.processor() or platform.machine() or "cpu",
        threads=threads,
        input=tuple(example.tensors[0].shape),
        runs=runs,
        engines={
            engine: EngineLatency({form: times[f"{engine}/{form}"] for form in FORMS}, macs)
            for engine in runners
        },
        notes=tuple(notes),
    )


def _torch_runner(subject: Subject, _: int) -> Run:
    return lambda: subject.example.run(subject.model)


def _onnxruntime_runner(subject: Subject, threads: int) -> Run:
    from dynprune.export.onnx import onnx_runner

    run = onnx_runner(subject.onnx_file("onnxruntime"), threads=threads)
    return lambda: run(subject.example.tensors)


def _onnxruntime_int8_runner(subject: Subject, threads: int) -> Run:
    from dynprune.export.onnx import onnx_runner

    run = onnx_runner(subject.int8_file("onnxruntime"), threads=threads)
    return lambda: run(subject.example.tensors)


def _openvino_int8_runner(subject: Subject, threads: int) -> Run:
    from dynprune.export.openvino import openvino_runner

    run = openvino_runner(subject.int8_file("openvino"), threads=threads)
    return lambda: run(subject.example.tensors)


def _openvino_runner(arithmetic: Arithmetic) -> Runner:
    def make(subject: Subject, threads: int) -> Run:
        from dynprune.export.openvino import openvino_runner

        path = subject.onnx_file("openvino", arithmetic)
        run = openvino_runner(path, threads=threads, arithmetic=arithmetic)
        return lambda: run(subject.example.tensors)

    return make


RUNNERS: Mapping[str, Runner] = {
    "torch": _torch_runner,
    "onnxruntime": _onnxruntime_runner,
    "onnxruntime-int8": _onnxruntime_int8_runner,
    "openvino": _openvino_runner("f32"),
    "openvino-bf16": _openvino_runner("bf16"),
    "openvino-int8": _openvino_int8_runner,
}
"""Every engine by its name."""


def _known(engines: Sequence[str]) -> dict[str, Runner]:
    if unknown := [engine for engine in engines if engine not in RUNNERS]:
        raise UsageError(f"no engine is called {unknown[0]!r}; there are: {', '.join(ENGINES)}")
    return {engine: RUNNERS[engine] for engine in engines}


def _threads() -> int:
    return torch.get_num_threads()


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
