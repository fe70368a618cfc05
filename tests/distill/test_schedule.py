"""Schedules, tested against the formulas that they come from."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynprune.distill.schedule import RAMPS, LearningRate, PruneSchedule, cosine, cubic, linear
from dynprune.errors import UsageError


@pytest.mark.parametrize("name", [n for n in RAMPS if n != "constant"])
def test_a_ramp_starts_at_zero_ends_at_one_and_never_falls(name):
    ramp = RAMPS[name]
    points = [ramp(i / 50) for i in range(-10, 71)]
    assert points[10] == 0.0
    assert points[60] == pytest.approx(1.0, abs=1e-15)
    assert points == sorted(points)
    assert points[0] == 0.0
    assert points[-1] == pytest.approx(1.0, abs=1e-15)


@given(st.integers(0, 500), st.integers(1, 400), st.floats(0.0, 1.0))
def test_the_linear_schedule_is_the_papers(step, end, ratio):
    fraction = PruneSchedule("linear", end_step=end).fraction(step, 1000)
    assert ratio * fraction == pytest.approx(ratio * min(1, step / end))


def test_cubic_and_cosine_are_ahead_and_level_at_half_way():
    assert cubic(0.5) == 0.875
    assert cosine(0.5) == pytest.approx(0.5)
    assert linear(0.25) == 0.25
    assert cosine(0.25) == pytest.approx(math.sin(math.pi / 8) ** 2)


def test_without_annealing_the_first_step_has_the_final_ratio():
    assert PruneSchedule("constant").fraction(0, 100) == 1.0
    assert PruneSchedule("linear", end_step=0).fraction(0, 100) == 1.0


def test_a_share_of_the_run_is_as_good_as_a_step():
    by_share, by_step = PruneSchedule(end_share=0.25), PruneSchedule(end_step=50)
    assert [by_share.fraction(t, 200) for t in range(201)] == [
        by_step.fraction(t, 200) for t in range(201)
    ]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"type": "steep"}, "'steep' is not one of linear, cubic, cosine, constant"),
        ({"end_step": 3, "end_share": 0.5}, "not both"),
        ({"end_share": 1.5}, "end_share=1.5 must lie between 0 and 1"),
        ({"end_step": -1}, "negative"),
    ],
)
def test_a_prune_schedule_that_cannot_be_meant_is_refused(arguments, text):
    with pytest.raises(UsageError, match=text):
        PruneSchedule(**arguments)


def test_poly_falls_from_the_peak_to_zero_by_its_power():
    schedule = LearningRate(power=2.0)
    assert schedule.factor(0, 80) == 1.0
    assert schedule.factor(20, 80) == pytest.approx(0.75**2)
    assert schedule.factor(80, 80) == 0.0


def test_warm_up_multiplies_the_curve_and_never_gives_zero():
    schedule = LearningRate(power=1.0, warmup_steps=4)
    rates = [schedule.factor(step, 10) for step in range(6)]
    assert rates == pytest.approx([0.25, 0.45, 0.6, 0.7, 0.6, 0.5])
    assert LearningRate("constant", warmup_steps=2).factor(9, 10) == 1.0


def test_a_learning_rate_that_cannot_be_meant_is_refused():
    with pytest.raises(UsageError, match="must not be negative"):
        LearningRate(power=-1.0)
    with pytest.raises(UsageError, match="'step' is not poly or constant"):
        LearningRate("step")
