"""Hosts that fail with a gated layer in them, or compute in ways of their own."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynprune.example import Example
from dynprune.gate import GateConfig, gates, plan_groups
from dynprune.graph import find_groups
from tests.gate.test_hosts import BFLOAT16, difference, gate_all
from tests.graph.adversaries import TwoLinears


def call() -> Example:
    torch.manual_seed(0)
    return Example((torch.randn(1, 6, 8),))


def planned(model: nn.Module, example: Example) -> dict[str, tuple[str, str | None]]:
    groups = find_groups(model, example).groups
    configs = {group.name: GateConfig(align=1) for group in groups}
    plans = plan_groups(model, example, groups, configs)
    return {plan.group.name: (plan.mode, plan.reason) for plan in plans}


class Picky(TwoLinears):
    """Takes only the layer that it was made with."""

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(self.fc1, nn.Linear):
            raise TypeError("fc1 must be a Linear")
        return super().forward(x)


def test_a_group_whose_host_fails_is_refused_and_the_others_are_not():
    model = nn.Sequential(TwoLinears(), nn.LayerNorm(8), Picky(), nn.LayerNorm(8), TwoLinears())
    found = planned(model.eval(), call())
    assert found["0.fc1"] == ("compact", None)
    assert found["4.fc1"] == ("compact", None)
    mode, reason = found["2.fc1"]
    assert mode == "refused"
    assert "fc1 must be a Linear" in reason


def test_a_key_that_is_the_same_for_every_input_is_refused():
    class Relative(nn.Module):
        """Queries meet keys of positions, which have no batch, as in DeBERTa."""

        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
            self.place = nn.Parameter(torch.randn(1, 6, 8))

        def forward(self, x: Tensor) -> Tensor:
            scores = self.q(x) @ self.k(self.place).transpose(1, 2)
            return self.o(scores.softmax(-1) @ self.v(x))

    found = planned(Relative().eval(), call())
    mode, reason = found["q"]
    assert mode == "refused"
    assert reason == "at k its input does not depend on the model's input"
    assert found["v"][0] == "compact"


def test_a_layer_under_vmap_is_refused():
    class Mapped(TwoLinears):
        def forward(self, x: Tensor) -> Tensor:
            return torch.vmap(super().forward)(x)

    mode, reason = planned(Mapped().eval(), call())["fc1"]
    assert mode == "refused"
    assert "did not run on tensors of the whole batch" in reason


@pytest.mark.parametrize("place", ["autocast", "a part in bfloat16"])
def test_a_part_in_half_precision_is_judged_by_that_precision(place):
    class Half(TwoLinears):
        def forward(self, x: Tensor) -> Tensor:
            if place == "autocast":
                with torch.autocast("cpu", torch.bfloat16):
                    return super().forward(x).float()
            return super().forward(x.to(self.fc1.weight.dtype)).float()

    model = Half().eval()
    model = model if place == "autocast" else model.bfloat16()
    (plan,) = gate_all(model, call()).plans
    assert plan.mode == "compact", plan.reason
    assert difference(model, call().batched(3)) < BFLOAT16


def test_buffers_that_a_run_changes_get_their_values_back():
    class Counting(TwoLinears):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("last", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.last = F.relu(x).sum()[None]
            return super().forward(x)

    model = Counting().eval()
    before = copy.deepcopy(model.state_dict())
    planned(model, call())
    assert not gates(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
