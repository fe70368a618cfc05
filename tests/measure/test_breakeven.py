"""The prune ratio from which gates pay, from times alone and from a real model."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import ViTConfig, ViTForImageClassification

from dynprune.example import Example
from dynprune.gate import GateConfig, attached, gate_model
from dynprune.graph import find_groups
from dynprune.measure.breakeven import break_even, crossing


def test_gates_pay_at_once_where_no_point_is_slower() -> None:
    assert crossing(10.0, [(0.0, 9.0), (0.5, 5.0)]) == 0.0


def test_gates_that_never_win_pay_nowhere() -> None:
    assert crossing(10.0, [(0.0, 12.0), (0.75, 11.0)]) is None


@given(st.floats(1.0, 100.0), st.floats(0.1, 0.9))
def test_a_line_through_dense_time_is_found_where_it_crosses(dense: float, ratio: float) -> None:
    points = [(r, dense * (1.0 + ratio - r)) for r in (0.0, 1.0)]
    assert crossing(dense, points) == pytest.approx(ratio)


def test_every_gated_module_is_timed_with_all_of_its_groups() -> None:
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
    )
    torch.manual_seed(0)
    model = ViTForImageClassification(config).eval()
    example = Example((torch.randn(1, 3, 32, 32),))
    groups = find_groups(model, example).candidates
    gate_model(model, example, groups, {g.name: GateConfig(prune_ratio=0.5) for g in groups})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    results = break_even(model, example, repeats=2, ratios=(0.0, 0.5))
    named = [name for result in results for name in result.groups]
    assert sorted(named) == sorted(p.group.name for p in attached(model).plans)
    for result in results:
        assert [ratio for ratio, _ in result.points] == pytest.approx([0.0, 0.5])
        assert result.dense_ms > 0
        assert set(result.to_json()) == {"module", "groups", "dense_ms", "points", "prune_ratio"}
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
