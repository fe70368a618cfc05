"""Experts are fitted to clusters of inputs: more of them never serve the inputs worse."""

import pytest
import torch
from torch import nn

import dynprune
from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.gate import GateConfig, plan_groups
from dynprune.gate.route import put_experts, routers
from dynprune.graph import find_groups
from dynprune.planning.experts import fit_experts
from dynprune.planning.sequential import refit_in_sequence

WORLDS = 3


def layer():
    """A hidden layer over (B, T, 16), of which each world of inputs uses other neurons."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)).eval()


def inputs(count, seed):
    """Tokens about the centre of a world, world after world."""
    random = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(WORLDS, 16, generator=torch.Generator().manual_seed(9))
    noise = torch.randn(count, 1, 40, 16, generator=random)
    return [Example((centres[i % WORLDS] + noise[i],)) for i in range(count)]


def planned(model, ratio):
    example = inputs(1, 0)[0]
    found = find_groups(model, example).groups
    config = GateConfig(order="fixed", prune_ratio=ratio, align=1)
    return plan_groups(model, example, found, {group.name: config for group in found})


def squared_error(model, wanted, calls):
    with torch.no_grad():
        return sum(
            float((c.run(model) - w).square().mean()) for c, w in zip(calls, wanted, strict=True)
        )


@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_an_expert_for_each_world_serves_unseen_inputs_better_than_one_set(ratio):
    model, unseen = layer(), inputs(12, seed=2)
    plans = planned(model, ratio)
    with torch.no_grad():
        dense = [call.run(model) for call in unseen]
    errors = []
    for count in (1, WORLDS):
        fitted = fit_experts(model, plans, inputs(24, seed=1), experts=count)
        assert {len(experts.index) for experts in fitted.values()} == {count}
        put_back = put_experts(model, plans, fitted)
        errors.append(squared_error(model, dense, unseen))
        put_back()
    assert errors[1] < 0.7 * errors[0]


def test_fitted_consumers_are_least_squares_solutions():
    model, calls = layer(), inputs(9, seed=1)
    plans = planned(model, 0.5)
    with torch.no_grad():
        dense = [call.run(model) for call in calls]
    put_experts(model, plans, fit_experts(model, plans, calls, experts=2, ridge=1e-9))
    least = squared_error(model, dense, calls)
    for seed in range(4):
        torch.manual_seed(seed)
        for parameter in (model[2].weight, model[2].bias):
            before = parameter.detach().clone()
            for sign in (1, -1):
                step = sign * 1e-3 * torch.randn_like(parameter)
                parameter.data = before + step
                assert squared_error(model, dense, calls) > least
            parameter.data = before


def test_the_model_is_not_changed():
    model = layer()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit_experts(model, planned(model, 0.5), inputs(4, seed=1))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_what_experts_cannot_be_fitted_to_is_refused():
    model = layer()
    plans = planned(model, 0.5)
    with pytest.raises(UsageError, match="there is none"):
        fit_experts(model, plans, [])
    with pytest.raises(UsageError, match="at least 1"):
        fit_experts(model, plans, inputs(2, 0), experts=0)


def test_tokens_of_padding_take_no_part():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = layer()

        def forward(self, x, attention_mask=None):
            return self.hidden(x)

    model = Masked().eval()
    calls = inputs(9, seed=1)
    masks = [(torch.arange(40) < 30 + i).long()[None] for i in range(9)]
    padded = [Example(c.args, {"attention_mask": m}) for c, m in zip(calls, masks, strict=True)]
    noisy = [
        Example((torch.where(m[..., None] > 0, c.args[0], 100.0),), {"attention_mask": m})
        for c, m in zip(calls, masks, strict=True)
    ]
    plans = planned(model, 0.5)
    for grain in ("instance", "token"):
        grains = {plan.group.name: grain for plan in plans}
        found, wanted = (
            fit_experts(model, plans, some, experts=3, grains=grains) for some in (noisy, padded)
        )
        for name, own in wanted.items():
            assert torch.equal(found[name].index, own.index)
            for reader, other in zip(
                own.readers.values(), found[name].readers.values(), strict=True
            ):
                assert torch.allclose(reader.weight, other.weight)


def test_tokens_that_choose_are_served_better_than_whole_inputs():
    model = layer()
    mixed = [Example((torch.cat([c.args[0][:, :14] for c in inputs(3, s)], 1),)) for s in range(16)]
    plans = planned(model, 0.75)
    with torch.no_grad():
        dense = [call.run(model) for call in mixed[8:]]
    errors = {}
    for grain in ("instance", "token"):
        grains = {plan.group.name: grain for plan in plans}
        put_back = put_experts(
            model, plans, fit_experts(model, plans, mixed[:8], experts=3, grains=grains)
        )
        errors[grain] = squared_error(model, dense, mixed[8:])
        put_back()
    assert errors["token"] < 0.7 * errors["instance"]


class Deep(nn.Module):
    """Residual hidden layers, each read by the next."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.ModuleList(layer() for _ in range(4))
        for block in self.layers:
            for parameter in block.parameters():
                nn.init.normal_(parameter, std=0.25)

    def forward(self, x):
        for block in self.layers:
            x = x + block(x)
        return x


@pytest.mark.parametrize("grain", ["instance", "token"])
def test_consumers_of_experts_are_fitted_in_sequence(grain, monkeypatch):
    found = []

    def noted(*args, **kwargs):
        found.append(refit_in_sequence(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr("dynprune.pipeline.apply.refit_in_sequence", noted)
    settings = (
        "apply.targets=[{kind: ffn}]",
        "apply.gate.choose=experts",
        "apply.gate.experts=3",
        f"apply.gate.grain={grain}",
        "apply.calibration.refit=sequential",
        "sparsity.final=0.5",
    )
    calibration = [call.args[0] for call in inputs(24, seed=1)]
    recipe = dynprune.load_recipe("any", settings)
    routed = dynprune.apply(Deep().eval(), calibration[0], recipe, calibration=calibration)
    assert len(routers(routed)) == 4
    # On so few layers sequence gains little; what it fits is as near to the dense output.
    assert found[0].sequential_error < 1.5 * found[0].one_shot_error < 0.1
