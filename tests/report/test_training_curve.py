"""The course of a run, as its records tell it."""

import json
from xml.etree import ElementTree

import pytest

from dynprune.report.training_curve import read_training_curve, training_curve_rows


def write(directory, count=40):
    lines = []
    for step in range(1, count + 1):
        scores = {"miou": step / 100} if step % 10 == 0 else None
        stage = "features" if step <= 20 else "logits"
        record = {"step": step, "stage": stage, "loss": 1 / step, "prune_ratio": step / count / 2}
        lines.append(json.dumps({**record, "validation": scores}))
    (directory / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def test_records_are_read_by_step(tmp_path):
    write(tmp_path)
    course = read_training_curve(tmp_path)
    assert course.stages == [("features", 1.0), ("logits", 21.0)]
    assert course.miou == [(10.0, 0.1), (20.0, 0.2), (30.0, 0.3), (40.0, 0.4)]
    assert course.loss[-1] == (40.0, 1 / 40)
    assert course.pruned[-1] == (40.0, 0.5)


def test_lines_stay_in_their_drawing_and_end_where_the_run_does(tmp_path):
    write(tmp_path, 2000)
    rows = training_curve_rows(read_training_curve(tmp_path))
    assert [row.name for row in rows] == ["loss, logarithmic", "pruned share", "validation mIoU"]
    assert rows[1].number == "0.0% → 50.0%"
    for row in rows:
        root = ElementTree.fromstring(row.drawing.__html__())
        lines = [line for line in root.findall("line") if "course" in line.get("class")]
        assert 2 < len(lines) < 400
        ends = [float(line.get(key).rstrip("%")) for line in lines for key in ("x1", "x2")]
        heights = [float(line.get(key)) for line in lines for key in ("y1", "y2")]
        assert min(ends) >= 0
        assert max(ends) == 99
        assert 0 <= min(heights) <= max(heights) <= 64


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]\n[2]", '{"step": 1}', "{" * 10_000, '{"step": 1, "loss": NaN}']
)
def test_what_is_no_course_is_left_out(tmp_path, text):
    (tmp_path / "metrics.jsonl").write_text(text)
    assert read_training_curve(tmp_path) is None
    assert read_training_curve(tmp_path / "nowhere") is None
