"""Hosts that fail with a gated layer in them, or compute in ways of their own."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynprune.example import Example
from dynprune.gate import GateConfig, gates, plan_groups, remove
from dynprune.graph import find_groups
from tests.gate.zoo_laws import BFLOAT16, ROUNDING, difference, gate_all
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


class Listing(nn.Module):
    """Runs its layers out of a plain list, beside the names that they are registered under."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)]
        for place, layer in enumerate(self.layers):
            self.add_module(str(place), layer)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_layers_in_a_plain_list_are_replaced_there_and_put_back():
    model = Listing().eval()
    before, dense = list(model.layers), model(call().args[0])
    (plan,) = gate_all(model, call()).plans
    assert plan.mode == "compact", plan.reason
    assert difference(model, call().batched(3)) < ROUNDING
    remove(model)
    assert model.layers == before
    assert torch.equal(model(call().args[0]), dense)


def test_layers_that_the_host_keeps_out_of_sight_are_refused():
    class Hiding(TwoLinears):
        def __init__(self) -> None:
            super().__init__()
            self.kept = ((self.fc1, self.fc2),)

        def forward(self, x: Tensor) -> Tensor:
            return self.kept[0][1](F.gelu(self.kept[0][0](x)))

    mode, reason = planned(Hiding().eval(), call())["fc1"]
    assert mode == "refused"
    assert "does not run gated ones" in reason


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0])
def test_a_hidden_layer_under_a_scale_that_starts_near_zero_is_gated(scale):
    """As in ConvNeXt and CaiT: what the layers make is looked at, not what is left of it."""

    class Scaled(TwoLinears):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.full((8,), scale))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.gamma * super().forward(x)

    assert planned(Scaled().eval(), call())["fc1"] == ("compact", None)


def test_a_model_whose_embedding_starts_near_zero_is_gated():
    model = nn.Sequential(nn.Linear(8, 8), TwoLinears()).eval()
    nn.init.normal_(model[0].weight, std=1e-9)
    nn.init.zeros_(model[0].bias)
    nn.init.zeros_(model[1].fc1.bias)
    assert planned(model, call())["1.fc1"] == ("compact", None)


def test_a_host_that_draws_random_numbers_is_verified_with_the_same_ones():
    class Sampling(TwoLinears):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[:, torch.randperm(x.shape[1])[:4]])

    assert planned(Sampling().eval(), call())["fc1"] == ("compact", None)
