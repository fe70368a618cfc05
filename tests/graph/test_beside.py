"""A branch that is added to a layer is one layer with it; a residual stream is no branch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dynprune.example import Example
from dynprune.gate import GateConfig, gate_model, gates, plan_groups
from dynprune.graph import find_groups
from dynprune.planning.calibrate import start_from_weights
from tests.gate.zoo_laws import difference

CALL = Example((torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(0)),))
WIDER = Example((torch.randn(3, 9, 64, generator=torch.Generator().manual_seed(1)),))


class Adapted(nn.Module):
    """A linear layer with a low-rank branch, added in one of several ways."""

    def __init__(self, inputs, outputs, way="behind", rank=4):
        super().__init__()
        self.base, self.way = nn.Linear(inputs, outputs), way
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=False)
        self.second_down, self.second_up = nn.Linear(inputs, rank), nn.Linear(rank, outputs)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        y = self.base(x)
        if self.way == "before":
            return self.up(self.down(x)) + y
        y = y + self.up(self.down(self.dropout(x))) * 2.0
        if self.way == "twice":
            y = y + self.second_up(F.relu(self.second_down(x)))
        return y


class Mlp(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.fc1, self.fc2 = Adapted(64, 256, way), Adapted(256, 64, way)

    def forward(self, x):
        return x + self.fc2(F.gelu(self.fc1(x)))


class Attention(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.q, self.k, self.v = (Adapted(64, 64, way) for _ in range(3))
        self.o = nn.Linear(64, 64)

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (4, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, scale=0.25)
        return x + self.o(y.transpose(1, 2).flatten(2))


def gated(model):
    torch.manual_seed(0)
    model = nn.Sequential(model).eval()
    groups = find_groups(model, CALL).groups
    configs = {group.name: GateConfig(align=1) for group in groups}
    return model, gate_model(model, CALL, groups, configs)


@pytest.mark.parametrize("way", ["behind", "before", "twice"])
@pytest.mark.parametrize(("build", "wanted"), [(Mlp, {256}), (Attention, {64})])
def test_a_layer_with_branches_is_gated_as_one_and_its_ranks_are_not(build, wanted, way):
    model, record = gated(build(way))
    found = [plan for plan in record.plans if plan.mode != "refused"]
    assert {plan.group.neurons for plan in found} == wanted
    assert all(plan.mode == "compact" for plan in found)
    ranks = [plan for plan in record.plans if plan.group.neurons == 4]
    assert ranks
    assert all("a branch of low rank beside" in plan.reason for plan in ranks)
    assert difference(model, WIDER) < 1e-5


def test_queries_with_branches_carry_the_value_once_on_the_keys():
    model, _ = gated(Attention("behind"))
    carrying = {
        name
        for name, layer in model.named_modules()
        for binding in getattr(layer, "makes", ())
        if binding.carries_value
    }
    assert carrying == {"0.k.base", "0.k.up"}


def test_an_untrained_branch_does_not_make_all_neurons_alike():
    model, _ = gated(Attention("behind"))
    for name, parameter in model.named_parameters():
        if ".up." in name:
            parameter.data.zero_()
    start_from_weights(model)
    assert all(gate.prior.std() > 1e-3 for gate in gates(model).values())


def test_a_residual_stream_is_no_branch():
    class Stream(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.up, self.down = (
                nn.Linear(64, 64),
                nn.Linear(64, 128),
                nn.Linear(128, 64),
            )
            self.last = nn.Linear(64, 8)

        def forward(self, x):
            x = self.first(x)
            return self.last(x + self.down(F.relu(self.up(x))))

    model = nn.Sequential(Stream()).eval()
    groups = find_groups(model, CALL).groups
    plans = plan_groups(model, CALL, groups, {g.name: GateConfig(align=1) for g in groups})
    assert {(plan.group.neurons, plan.mode) for plan in plans} == {
        (64, "refused"),
        (128, "compact"),
    }
    (stream,) = [plan for plan in plans if plan.mode == "refused"]
    assert "an addition joins the outputs of several layers" in stream.reason


def test_what_another_input_adds_is_no_branch():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.out = nn.Linear(64, 32), nn.Linear(64, 32), nn.Linear(32, 8)

        def forward(self, x, y):
            return self.out(F.relu(self.a(x) + self.b(y)))

    model = Two().eval()
    (group,) = find_groups(model, Example((CALL.args[0], CALL.args[0] + 1))).groups
    assert "an addition joins the outputs of several layers" in group.reason
