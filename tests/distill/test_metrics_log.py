"""The journal: whole lines, cut where a run goes on, and TensorBoard's copy."""

import json
import sys

import pytest

from dynprune.distill import Record
from dynprune.distill.metrics_log import MetricsLog
from dynprune.errors import OutputError, UsageError


def record(step):
    return Record(
        step=step,
        steps=10,
        stage="features",
        loss=1.0 / step,
        parts={"mse": 0.5},
        lr=1e-3,
        grad_norm=2.0,
        prune_ratio=0.25,
        kept_share=0.75,
        seconds=1.0,
        eta_seconds=9.0,
        validation={"miou": 0.4} if step % 2 == 0 else None,
    )


def steps(directory):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_every_record_is_a_line_that_reads_back(tmp_path):
    with MetricsLog(tmp_path) as journal:
        journal.write(record(1))
        journal.write(record(2))
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [Record(**json.loads(line)) for line in lines] == [record(1), record(2)]


def test_a_resumed_run_drops_what_it_will_write_again_and_torn_lines(tmp_path):
    with MetricsLog(tmp_path) as journal:
        for step in (1, 2, 3, 4):
            journal.write(record(step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "ste')
    with MetricsLog(tmp_path, after_step=2) as journal:
        journal.write(record(3))
    assert steps(tmp_path) == [1, 2, 3]


def test_a_new_run_starts_a_new_journal(tmp_path):
    for _ in range(2):
        with MetricsLog(tmp_path) as journal:
            journal.write(record(1))
    assert steps(tmp_path) == [1]


def test_a_journal_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*metrics\.jsonl"):
        MetricsLog(tmp_path)


def test_tensorboard_gets_every_scalar(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path, tensorboard=True) as journal:
        for step in (1, 2):
            journal.write(record(step))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"loss/total", "loss/mse", "training/lr", "validation/miou"} <= set(
        events.Tags()["scalars"]
    )
    assert [e.value for e in events.Scalars("loss/total")] == [1.0, 0.5]


def test_a_missing_tensorboard_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match=r"dynprune\[tensorboard\]"):
        MetricsLog(tmp_path, tensorboard=True)


def test_a_record_that_a_kill_kept_from_the_journal_is_written_once(tmp_path):
    with MetricsLog(tmp_path) as journal:
        journal.write(record(2))
    for _ in range(2):
        with MetricsLog(tmp_path, after_step=4) as journal:
            journal.write_if_missing(record(2))
            journal.write_if_missing(record(4))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]
