"""Runs from beginning to end: what they yield, write, refuse and leave behind."""

import json
import logging
import os
import signal

import pytest
import torch

from dynprune import gate
from dynprune.distill import (
    CheckpointStore,
    Interrupted,
    LossTerm,
    Reporting,
    StagePlan,
    TrainingPlan,
    train,
)
from dynprune.distill.schedule import PruneSchedule
from dynprune.errors import OutputError, UsageError
from tests.distill import tiny
from tests.distill.course import CASES, course, models, validate


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def finished(case, output=None, **changes):
    """Train to the end; give the records and the student."""
    student, teacher = models(case)
    return list(course(case, output, student, teacher, **changes)), student


def stopped_at(run, step):
    """Send SIGTERM once a run has yielded this step; give what it raises."""
    for record in run:
        if record.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
            break
    with pytest.raises(Interrupted) as caught:
        list(run)
    assert caught.value.step == step
    return caught.value


def assert_same_bits(student, other):
    theirs = other.state_dict()
    for name, value in student.state_dict().items():
        assert torch.equal(value, theirs[name]), name


def test_a_run_yields_and_writes_the_same_records(tmp_path):
    records, student = finished("plain", tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [record.to_json() for record in records]
    assert [record.step for record in records] == [1, 2, 3, 4, 5, 6]
    assert [record.stage for record in records] == ["features"] * 3 + ["logits"] * 3
    assert [set(r.parts) for r in records] == [{"mse", "gate_l1"}] * 3 + [
        {"ce", "soft_ce", "gate_l1"}
    ] * 3
    assert [r.step for r in records if r.validation] == [3, 6]
    assert all(record.steps == 6 for record in records)
    assert records[-1].eta_seconds == 0.0
    assert not student.training
    assert {g.prune_ratio for g in gate.gates(student).values()} == {0.5}


def test_checkpoints_are_written_rotated_and_the_best_is_marked(tmp_path):
    scores = iter([0.9, 0.1])
    records, _ = finished("plain", tmp_path, validate=lambda model: {"miou": next(scores)})
    store = CheckpointStore(tmp_path / "checkpoints")
    assert [r.checkpoint for r in records] == [None, "step-2", "step-3", "step-4", None, "step-6"]
    assert store.steps() == [3, 4, 6]  # the last two, and the best
    assert store.best().name == "step-3"
    record = json.loads((store.directory / "best.json").read_text())
    assert record == {"checkpoint": "step-3", "step": 3, "metric": "miou", "value": 0.9}


def test_a_run_without_an_output_writes_nothing_and_gives_the_same_weights(tmp_path):
    _, written = finished("plain", tmp_path)
    _, student = finished("plain")
    assert_same_bits(student, written)


def test_reporting_seldom_averages_the_loss_and_changes_no_weight():
    often, first = finished("plain")
    seldom, second = finished("plain", reporting=Reporting(log_every=100))
    assert_same_bits(first, second)
    assert [record.step for record in seldom] == [1, 3, 6]
    assert seldom[-1].loss == pytest.approx(sum(r.loss for r in often[3:]) / 3)


def test_the_moving_average_is_what_is_validated_and_what_is_left(tmp_path):
    seen = []

    def look(model):
        seen.append({n: v.clone() for n, v in model.state_dict().items()})
        return {"miou": 0.5}

    _, student = finished("ema", tmp_path, validate=look)
    read = CheckpointStore(tmp_path / "checkpoints").latest()
    for name, value in student.state_dict().items():
        assert torch.equal(value, read.tensors["ema"][name])
        assert torch.equal(value, seen[-1][name])
    assert any(
        not torch.equal(v, read.tensors["model"][n]) for n, v in student.state_dict().items()
    )


@pytest.mark.parametrize("case", ["plain", "ema", "accumulate"])
def test_a_run_stopped_between_any_steps_ends_with_the_same_bits(case, tmp_path):
    _, whole = finished(case)
    student, teacher = models(case)
    for stop_at in (1, 3, 4):  # within a stage, at its end, right after it
        run = course(case, tmp_path, student, teacher)
        assert stopped_at(run, stop_at).checkpoint == tmp_path / "checkpoints" / f"step-{stop_at}"
        student, teacher = models(case)
    resumed, student = finished(case, tmp_path)
    assert_same_bits(student, whole)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(set(steps))
    assert steps[-1] == 6
    assert resumed[0].step > 4


def test_a_finished_run_resumes_to_the_same_student(tmp_path):
    _, student = finished("ema", tmp_path)
    records, again = finished("ema", tmp_path)
    assert records == []
    assert_same_bits(again, student)
    assert not again.training


def test_a_validation_that_was_stopped_is_made_up_for(tmp_path):
    def stopped(model):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal ends the validation")

    student, teacher = models("plain")
    run = course("plain", tmp_path, student, teacher, validate=stopped)
    records = []
    with pytest.raises(Interrupted) as caught:
        records.extend(run)
    assert caught.value.step == 3
    resumed, student = finished("plain", tmp_path)
    assert resumed[0].step == 3
    assert resumed[0].validation is not None
    whole_records, whole = finished("plain")
    assert_same_bits(student, whole)
    by_step = {r.step: r for r in whole_records}
    assert [r.validation for r in resumed] == [by_step[r.step].validation for r in resumed]


def test_a_broken_checkpoint_is_passed_over_and_the_end_is_the_same(tmp_path, caplog):
    _, whole = finished("plain", tmp_path)
    (tmp_path / "checkpoints" / "step-6" / "model.safetensors").write_bytes(b"torn")
    with caplog.at_level(logging.WARNING):
        records, student = finished("plain", tmp_path)
    assert "step-6 is damaged" in caplog.text
    assert records[0].step > 3
    assert_same_bits(student, whole)


def test_one_stage_after_the_other_is_the_whole_run(tmp_path):
    _, whole = finished("plain")
    first, _ = finished("plain", tmp_path, only="features")
    second, student = finished("plain", tmp_path, only="logits")
    assert [r.step for r in first + second] == [1, 2, 3, 4, 5, 6]
    assert_same_bits(student, whole)


def test_a_stage_waits_for_those_before_it(tmp_path):
    student, teacher = models("plain")
    stopped_at(course("plain", tmp_path, student, teacher, only="features"), 2)
    text = r"'logits' begins at step 3, but the checkpoint in .* is at step 2"
    with pytest.raises(UsageError, match=text):
        finished("plain", tmp_path, only="logits")


def test_another_recipe_another_teacher_or_another_seed_is_not_resumed(tmp_path):
    finished("plain", tmp_path)
    for changes, text in (
        ({"facts": {"recipe": {"name": "other"}}}, "recipe.name: tiny -> other"),
        ({"seed": 6}, "seed: 5 -> 6"),
        ({"sparsity": PruneSchedule(end_step=5)}, "sparsity.end_step: 4 -> 5"),
        ({"execution": CASES["ema"]}, "execution.ema: null -> 0.9"),
    ):
        with pytest.raises(UsageError, match=text):
            finished("plain", tmp_path, **changes)
    student, _ = models("plain")
    other = tiny.folded(tiny.teacher(seed=1))
    with pytest.raises(UsageError, match="teacher: "):
        list(course("plain", tmp_path, student, other))
    with pytest.raises(UsageError, match="student: "):
        list(course("plain", tmp_path, tiny.teacher(), tiny.folded(tiny.teacher())))


def test_an_earlier_run_is_not_overwritten(tmp_path):
    finished("plain", tmp_path)
    with pytest.raises(OutputError, match="holds checkpoints of an earlier run"):
        finished("plain", tmp_path, resume=False)


def test_two_runs_in_one_directory_are_refused(tmp_path):
    student, teacher = models("plain")
    run = course("plain", tmp_path, student, teacher)
    next(run)
    with pytest.raises(OutputError, match="another run is writing into"):
        finished("plain", tmp_path)
    run.close()
    finished("plain", tmp_path)


def test_a_run_that_diverges_says_so_and_saves_no_broken_weights(tmp_path):
    student, teacher = models("plain")
    run = course("plain", tmp_path, student, teacher)
    for record in run:
        if record.step == 2:
            next(student.parameters()).data.fill_(float("nan"))
            break
    with pytest.raises(UsageError, match=r"training diverged: .* not finite at step 3"):
        list(run)
    read = CheckpointStore(tmp_path / "checkpoints").latest()
    assert read.step == 2
    assert all(t.isfinite().all() for t in read.tensors["model"].values())


def test_a_student_without_gates_is_fine_tuned_without_a_teacher():
    student = tiny.teacher()
    stages = [StagePlan("labels", 3, (LossTerm("ce"),))]
    before = {n: p.clone() for n, p in student.named_parameters()}
    records = list(train(student, None, tiny.batch, TrainingPlan(stages), validate=validate))
    assert records[-1].prune_ratio == 0.0
    assert records[-1].kept_share == 1.0
    assert any(not torch.equal(p, before[n]) for n, p in student.named_parameters())


def test_a_schedule_longer_than_the_run_is_shortened_and_said(caplog):
    with caplog.at_level(logging.WARNING):
        records, student = finished("plain", sparsity=PruneSchedule(end_step=80_000))
    assert "ends at step 80000, the run at step 6" in caplog.text
    assert records[-1].prune_ratio == pytest.approx(0.5 * 5 / 6)
    assert {g.prune_ratio for g in gate.gates(student).values()} == {0.5}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"only": "warm"}, "there is no stage 'warm'; the recipe has features, logits"),
        ({"stages": []}, "names of their own"),
        ({"stages": [tiny.FEATURES, tiny.FEATURES]}, "names of their own"),
    ],
)
def test_a_run_that_cannot_be_meant_is_refused(changes, text):
    with pytest.raises(UsageError, match=text):
        finished("plain", **changes)


def test_a_missing_teacher_is_refused_before_anything_is_written(tmp_path):
    student, _ = models("plain")
    with pytest.raises(UsageError, match=r"stage 'features' learns from a teacher \(mse\)"):
        list(course("plain", tmp_path / "run", student, None))
    assert not (tmp_path / "run").exists()
