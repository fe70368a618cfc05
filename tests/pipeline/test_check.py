"""A user's own model and calls are held to the laws, and stay as they were."""

import copy

import pytest
import torch
from torch import nn

import dynprune
from dynprune.data import Preprocessing
from dynprune.errors import InputError, UsageError
from dynprune.example import Example
from dynprune.gate import gates, set_prune_ratio
from dynprune.laws import LAWS
from dynprune.pipeline import check_calls


@pytest.fixture
def gated():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
    return dynprune.apply(dense, torch.randn(2, 8), "any")


def test_a_report_has_a_verdict_for_every_law(gated):
    report = dynprune.check(gated, torch.randn(4, 8))
    record = report.to_json()
    assert [law["name"] for law in record["laws"]] == list(LAWS)
    assert {law["status"] for law in record["laws"]} <= {"ok", "broken", "not tried"}
    assert all(law["detail"] for law in record["laws"])
    assert record["laws"][0]["status"] == "ok"


def test_the_model_stays_as_it_is(gated):
    gated.train()
    set_prune_ratio(gated, 0.5)
    before = copy.deepcopy(gated.state_dict())
    dynprune.check(gated, torch.randn(4, 8))
    after = gated.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(module.training for module in gated.modules())
    assert {gate.prune_ratio for gate in gates(gated).values()} == {0.5}


def test_a_dense_model_is_checked_too():
    mlp = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)).eval()
    assert dynprune.check(mlp, torch.randn(4, 8)).broken == ()


def test_a_call_that_the_model_does_not_take_is_named(gated):
    with pytest.raises(InputError, match="does not take call 2: RuntimeError"):
        dynprune.check(gated, [torch.randn(4, 8), torch.randn(4, 9)])
    with pytest.raises(UsageError, match="needs a call"):
        dynprune.check(gated, [])


class Pictures:
    """Four pictures of one colour each."""

    def __len__(self):
        return 4

    def picture(self, index):
        return torch.full((3, 6, 10), 60 * index, dtype=torch.uint8)


def test_pictures_of_a_data_set_come_in_the_size_of_the_example():
    example = Example((torch.randn(2, 3, 8, 8),), {"interpolate": True})
    calls = list(check_calls(Pictures(), Preprocessing(), example))
    assert [call.args[0].shape for call in calls] == [(1, 3, 8, 8)] * 3
    assert calls[0].kwargs == {"interpolate": True}
    levels = [float(call.args[0].mean()) for call in calls]
    assert levels == sorted(levels)


def test_pictures_are_refused_where_the_model_takes_none():
    with pytest.raises(UsageError, match="leave it out"):
        list(check_calls(Pictures(), Preprocessing(), Example((torch.randn(2, 8),))))
