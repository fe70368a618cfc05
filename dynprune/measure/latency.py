"""Milliseconds of the dense, the rewritten and the pruned model, measured side by side."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynprune.errors import UsageError

__all__ = ["FORMS", "EngineLatency", "LatencyReport", "Run", "interleaved", "plot_latency"]

Run = Callable[[], object]
"""One inference, complete when it returns."""

_PAUSE, _PATIENCE = 0.5, 1200.0
"""Seconds between looks at a machine that is not as it should be, and until that is given up."""

FORMS = ("dense", "rewritten", "pruned")


@dataclass(frozen=True)
class EngineLatency:
    """Medians of one engine over the interleaved runs.

    Attributes:
        milliseconds: form -> time of every run.
        macs: form -> multiply-adds executed in one run.
    """

    milliseconds: Mapping[str, tuple[float, ...]]
    macs: Mapping[str, int]

    def median_ms(self, form: str) -> float:
        """Return the median time of a form."""
        return statistics.median(self.milliseconds[form])

    @property
    def speedup(self) -> float:
        """Dense time over pruned time."""
        return self.median_ms("dense") / self.median_ms("pruned")

    @property
    def efficiency(self) -> float:
        """Time saved by the gates alone over MACs saved by them: 1 where every MAC was time."""
        faster = self.median_ms("rewritten") / self.median_ms("pruned")
        return faster / (self.macs["rewritten"] / self.macs["pruned"])

    def to_json(self) -> dict[str, Any]:
        """Return the engine's entry of ``dynprune report latency --json``."""
        return {
            **{f"{form}_ms": self.median_ms(form) for form in FORMS},
            "speedup": self.speedup,
            "efficiency": self.efficiency,
            "quartiles_ms": {form: _quartiles(self.milliseconds[form]) for form in FORMS},
        }


@dataclass(frozen=True)
class LatencyReport:
    """Latency of all forms in all engines, from one interleaved series.

    Attributes:
        device: that every engine ran on.
        threads: of one inference.
        input: shape of the call's first tensor; its first size is the batch.
        runs: timed runs of every form, after warm-up.
        engines: engine -> its times.
        notes: sentences on what an engine does not run as its name says.
    """

    device: str
    threads: int
    input: tuple[int, ...]
    runs: int
    engines: Mapping[str, EngineLatency]
    notes: tuple[str, ...] = ()

    @property
    def batch(self) -> int:
        """Instances of one call."""
        return self.input[0] if self.input else 1

    def to_json(self) -> dict[str, Any]:
        """Return the document of ``dynprune report latency --json``."""
        return {
            "device": self.device,
            "threads": self.threads,
            "batch": self.batch,
            "input": list(self.input),
            "runs": self.runs,
            "engines": {name: engine.to_json() for name, engine in self.engines.items()},
            "notes": list(self.notes),
        }


def interleaved(
    runs: Mapping[str, Run],
    *,
    repeats: int = 15,
    warmup: int = 3,
    counts: Callable[[], bool] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, tuple[float, ...]]:
    """Time several things in turn, so that what disturbs the machine disturbs all of them.

    Before each timed run the same thing runs once untimed, so that it finds the caches as it would
    in steady use and not as another form left them.

    Args:
        runs: name -> one inference.
        repeats: timed rounds; every round runs each of them once, in rotating order.
        warmup: untimed rounds before.
        counts: whether the machine is as it should be; a run counts only if it was so before and
            after, and is waited for and repeated until then. Every run counts where None.
        clock: in seconds.

    Returns:
        Name -> milliseconds of every round.

    Raises:
        UsageError: no run counted for 20 minutes.
    """
    names = list(runs)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(warmup):
        for run in runs.values():
            run()
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for turn in range(repeats):
            shift = turn % len(names)
            for name in (*names[shift:], *names[:shift]):
                times[name].append(_timed(runs[name], counts, clock) * 1e3)
    finally:
        if was_enabled:
            gc.enable()
    return {name: tuple(values) for name, values in times.items()}


def _timed(run: Run, counts: Callable[[], bool] | None, clock: Callable[[], float]) -> float:
    """Run twice and time the second, as often as it takes until the run counts."""
    while True:
        waited = 0.0
        while counts is not None and not counts():
            if waited >= _PATIENCE:
                raise UsageError(f"No run counts: the machine was otherwise for {waited:.0f} s.")
            time.sleep(_PAUSE)
            waited += _PAUSE
        run()
        start = clock()
        run()
        seconds = clock() - start
        if counts is None or counts():
            return seconds


def plot_latency(report: LatencyReport, path: Path) -> None:
    """Draw every engine's medians as bars, with quartiles, into a picture file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 2.0 * len(report.engines), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, form in enumerate(FORMS):
        medians = [engine.median_ms(form) for engine in report.engines.values()]
        quartiles = [_quartiles(engine.milliseconds[form]) for engine in report.engines.values()]
        errors = [
            [m - low for m, (low, _) in zip(medians, quartiles, strict=True)],
            [high - m for m, (_, high) in zip(medians, quartiles, strict=True)],
        ]
        left = [engine + 0.27 * (place - 1) for engine in range(len(medians))]
        bars = axes.bar(left, medians, 0.25, yerr=errors, capsize=2, label=form)
        axes.bar_label(bars, [f"{m:.0f}" for m in medians], fontsize=8, padding=2)
    labels = [f"{name}\n{engine.speedup:.2f}x" for name, engine in report.engines.items()]
    axes.set_xticks(range(len(labels)), labels)
    axes.set_ylabel("milliseconds, median")
    shape = "x".join(str(size) for size in report.input)
    axes.set_title(f"{shape} on {report.device}, {report.threads} threads", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _quartiles(values: tuple[float, ...]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high
