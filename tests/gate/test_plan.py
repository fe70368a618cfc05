"""Plans of groups: written down, read again, refused."""

import json

import pytest
import torch

from dynprune.errors import GateError
from dynprune.example import Example
from dynprune.gate.config import GateConfig
from dynprune.gate.instances import InstanceLayout
from dynprune.gate.plan import GroupPlan, HeadAttribute, gated
from dynprune.graph import find_groups
from tests.plain_models import Mlp


@pytest.fixture
def plan():
    (group,) = find_groups(Mlp(8, 32).eval(), Example((torch.randn(2, 5, 8),))).candidates
    config = GateConfig(prune_ratio=0.25, mode="straight_through", align=4)
    heads = (HeadAttribute("attention", "head_dim", True),)
    layout = InstanceLayout(0, folded=True)
    return GroupPlan(group, config, mode="scatter", reason="why", layout=layout, heads=heads)


def test_a_plan_is_the_same_after_json(plan):
    again = GroupPlan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again.to_json() == plan.to_json()
    fields = ("config", "mode", "reason", "layout", "heads")
    assert all(getattr(again, name) == getattr(plan, name) for name in fields)
    pairs = zip(again.group.producers, plan.group.producers, strict=True)
    assert all(torch.equal(a.index, b.index) for a, b in pairs)


def test_a_mode_that_there_is_not_is_refused(plan):
    record = {**plan.to_json(), "mode": "quick"}
    with pytest.raises(GateError, match="mode 'quick' is not one of compact, scatter"):
        GroupPlan.from_json(record)


def test_a_refused_plan_has_its_reason_and_no_gate(plan):
    refused = plan.refused("it rains")
    assert (refused.mode, refused.reason, refused.heads) == ("refused", "it rains", ())
    assert gated([plan, refused]) == [plan]
