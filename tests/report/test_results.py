"""What is gathered agrees with what each part measures alone."""

import json
from dataclasses import replace

import pytest

from dynprune.errors import UsageError
from dynprune.gate import gate_parameters, gates
from dynprune.measure.calls import PictureCalls
from dynprune.measure.executed import executed
from dynprune.measure.macs import macs_report
from dynprune.models.storage import save
from dynprune.report.published import PUBLISHED
from dynprune.report.results import gather

from .conftest import PICTURES, loaded


def test_counts_are_of_every_picture_as_it_ran(measured) -> None:
    found = measured.found
    calls = PictureCalls(measured.data)
    assert list(found.executed) == [executed(measured.student.module, call) for call in calls]
    alone = macs_report(measured.student.module, measured.student.example, list(calls))
    assert found.macs == alone


def test_every_module_of_a_gated_group_has_its_part(measured) -> None:
    found = measured.found
    for name in gates(measured.student.module):
        stem = name.removesuffix("fc1")
        assert found.parts[name] == found.parts[stem + "fc2"] == "ffn"
        assert found.parts[stem + "dwconv.dwconv"] == "ffn"
    assert "decode_head" not in found.parts


def test_worlds_and_images_are_those_of_the_data(measured) -> None:
    assert measured.found.neurons.worlds == {"dark": 2, "light": 2}
    assert measured.found.samples == measured.found.neurons.images == 4
    assert len(measured.found.panels) == 3


def test_a_part_of_the_pictures_is_counted_and_all_are_scored(measured) -> None:
    parts = []
    found = gather(
        measured.student,
        measured.data,
        images=2,
        shown=0,
        preprocessing=PICTURES,
        progress=lambda done, total, part: parts.append((part, done, total)),
    )
    assert (len(found.executed), found.neurons.images, found.samples) == (2, 2, 4)
    assert found.comparison.student.images == 4
    assert [p for p, done, total in parts if done == total] == ["evaluate", "count", "neurons"]
    assert found.teacher is found.comparison.teacher is None


def test_files_and_the_command_that_wrote_them_are_read_from_the_directory(
    measured, tmp_path
) -> None:
    directory = save(measured.student.module, tmp_path / "written")
    # As earlier versions wrote it; today's tell no command.
    (directory / "environment.json").write_text(json.dumps({"command": "dynprune distill"}))
    student = replace(measured.student, name=str(directory))
    found = gather(student, measured.data, images=1, shown=0, preprocessing=PICTURES)
    size = (directory / "model.safetensors").stat().st_size
    assert found.file_bytes == {"student": size}
    assert found.commands == {"the model": "dynprune distill"}
    assert found.gate_parameters == sum(p.numel() for p in gate_parameters(student.module))


def test_the_record_is_plain(measured) -> None:
    record = json.loads(json.dumps(measured.found.to_json()))
    assert record["miou"]["student"] == measured.found.comparison.student.miou
    assert record["macs"]["dense"] > record["macs"]["rewritten"] > 0
    assert record["overlap"]["all"] < 1


def test_a_dense_student_and_a_gated_teacher_are_refused(measured) -> None:
    with pytest.raises(UsageError, match="teacher is dense"):
        gather(measured.teacher, measured.data, preprocessing=PICTURES)
    gated = loaded(measured.student.module, "other")
    with pytest.raises(UsageError, match="other is gated"):
        gather(measured.student, measured.data, teacher=gated, preprocessing=PICTURES)


def test_the_papers_headline_is_among_its_points() -> None:
    """DynaSegFormer's abstract: over 60 % fewer multiply-adds for 0.5 points of mIoU."""
    dense, pruned = PUBLISHED[:2]
    assert 1 - pruned.gmacs / dense.gmacs > 0.6
    assert dense.miou - pruned.miou == pytest.approx(0.005)
    assert all(p.gmacs <= p.dense_gmacs for p in PUBLISHED)
    assert all(p.gmacs == p.dense_gmacs for p in PUBLISHED if not p.prune_ratio)
