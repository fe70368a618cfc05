"""The paper's points and this model's stand on one scale."""

from dataclasses import replace

import pytest

from dynprune.report.published import PUBLISHED
from dynprune.report.tradeoff import tradeoff_figure

from .conftest import marks_of


def test_every_point_stands_at_its_share_of_the_dense_multiply_adds(measured) -> None:
    drawing, keys = tradeoff_figure(measured.found)
    assert [key.style for key in keys] == ["paper-1", "paper-2", "paper-3", "ours"]
    macs = measured.found.macs
    ours = [1.0, macs.rewritten / macs.dense, macs.executed.mean / macs.dense]
    shares = [point.gmacs / point.dense_gmacs for point in PUBLISHED] + ours
    assert [x for x, _ in marks_of(drawing)] == pytest.approx(
        [5 + 90 * s for s in shares], abs=0.01
    )
    assert [style for _, style in marks_of(drawing)][-3:] == ["ours"] * 3


def test_without_a_teacher_the_paper_stands_alone(measured) -> None:
    comparison = replace(measured.found.comparison, teacher=None)
    _, keys = tradeoff_figure(replace(measured.found, comparison=comparison))
    assert [key.style for key in keys] == ["paper-1", "paper-2", "paper-3"]


@pytest.mark.parametrize("change", [-0.4, 0.0, 0.07])
def test_any_change_fits_into_the_figure(measured, change) -> None:
    known = measured.found.comparison
    student = replace(known.student, miou=known.teacher.miou + change)
    found = replace(measured.found, comparison=replace(known, student=student))
    drawing, _ = tradeoff_figure(found)
    import re

    height = 296
    tops = [float(y) for y in re.findall(r' y="(-?[\d.]+)"', drawing.__html__())]
    assert all(0 <= y <= height for y in tops)
