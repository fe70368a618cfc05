"""Times are taken in turn, and figures are ratios of medians."""

from pathlib import Path

import pytest

from dynprune.errors import UsageError
from dynprune.measure.latency import EngineLatency, LatencyReport, interleaved, plot_latency


def test_every_timed_run_follows_one_of_its_own_kind_and_no_one_is_always_first() -> None:
    order: list[str] = []
    runs = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = interleaved(runs, repeats=3, warmup=1)
    assert order == [*"abc", *"aabbcc", *"bbccaa", *"ccaabb"]
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_times_are_milliseconds_of_the_clock() -> None:
    ticks = iter(range(100))
    times = interleaved({"a": lambda: None}, repeats=2, warmup=0, clock=lambda: next(ticks) / 4)
    assert times == {"a": (250.0, 250.0)}


def test_a_run_counts_if_the_machine_was_as_it_should_be_before_and_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dynprune.measure.latency._PAUSE", 0.0)
    ran: list[None] = []
    #               waits, runs, lost | runs, counts | runs, counts
    states = iter([False, False, True, False, True, True, True, True])
    ticks = iter(range(100))
    times = interleaved(
        {"a": lambda: ran.append(None)},
        repeats=2,
        warmup=0,
        counts=lambda: next(states),
        clock=lambda: next(ticks) / 4,
    )
    assert times == {"a": (250.0, 250.0)}
    assert len(ran) == 2 * 3
    assert next(states, None) is None


def test_a_machine_that_never_is_as_it_should_be_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dynprune.measure.latency._PATIENCE", 0.0)
    with pytest.raises(UsageError, match="No run counts"):
        interleaved({"a": lambda: None}, repeats=1, warmup=0, counts=lambda: False)


@pytest.fixture
def engine() -> EngineLatency:
    milliseconds = {
        "dense": (90.0, 100.0, 1000.0),
        "rewritten": (40.0, 40.0, 41.0),
        "pruned": (24.0, 25.0, 26.0),
    }
    return EngineLatency(milliseconds, {"dense": 800, "rewritten": 400, "pruned": 200})


def test_speedup_is_dense_over_pruned(engine: EngineLatency) -> None:
    assert engine.speedup == 100 / 25


def test_efficiency_is_one_where_every_mac_saved_was_time_saved(engine: EngineLatency) -> None:
    assert engine.efficiency == pytest.approx((40 / 25) / (400 / 200))
    perfect = EngineLatency(
        {"dense": (9.0,), "rewritten": (4.0,), "pruned": (2.0,)}, {"rewritten": 400, "pruned": 200}
    )
    assert perfect.efficiency == 1.0


def test_the_document_has_the_keys_that_scripts_rely_on(engine: EngineLatency) -> None:
    report = LatencyReport("cpu", 2, (1, 3, 64, 64), 3, {"torch": engine})
    document = report.to_json()
    assert {key: document[key] for key in ("device", "threads", "batch", "runs")} == {
        "device": "cpu",
        "threads": 2,
        "batch": 1,
        "runs": 3,
    }
    keys = {"dense_ms", "rewritten_ms", "pruned_ms", "speedup", "efficiency"}
    assert keys <= set(document["engines"]["torch"])
    assert document["engines"]["torch"]["dense_ms"] == 100.0


def test_the_plot_is_a_picture(engine: EngineLatency, tmp_path: Path) -> None:
    report = LatencyReport("cpu", 1, (1, 3, 64, 64), 3, {"torch": engine, "openvino": engine})
    plot_latency(report, tmp_path / "latency.png")
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")
