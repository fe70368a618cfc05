"""Gates whose choices are consolidated give what they gave, as far as their choices repeat."""

import copy

import pytest
import torch

from dynprune.errors import UsageError
from dynprune.gate.inject import gates, is_gated, remove
from dynprune.gate.route import routers
from dynprune.planning.calibrate import calibrate
from dynprune.planning.consolidate import consolidate
from tests.gate.zoo_laws import gated_animal, run


def gated(name, count=12):
    model, example, _, _ = gated_animal(name)
    calls = [example.batched(2, seed=seed) for seed in range(count)]
    calibrate(model, calls)
    return model, example, calls


@pytest.mark.parametrize("name", ["segformer", "vit"])
def test_gates_that_always_choose_alike_become_fixed_layers_that_answer_alike(name):
    model, example, calls = gated(name)
    for gate in gates(model).values():  # the order by base scores alone
        for parameter in gate.predictor.parameters():
            parameter.data.zero_()
    twin = copy.deepcopy(model)
    found = consolidate(model, example, calls, experts=3)
    assert found.experts == 0
    assert found.agreement == pytest.approx(1.0)
    assert not is_gated(model)
    # Consumers are held to what they were by a ridge, so that the output moves a little.
    for a, b in zip(run(model, example), run(twin, example), strict=True):
        assert (a - b).norm() < 0.05 * b.norm()


def test_more_experts_agree_better_with_what_gates_chose():
    agreement = []
    for count in (1, 4):
        model, example, calls = gated("vit")
        for seed, gate in enumerate(gates(model).values()):
            torch.manual_seed(seed)
            gate.predictor.up.weight.data.normal_()
            gate.predictor.down.weight.data.normal_()
        found = consolidate(model, example, calls, experts=count)
        agreement.append(found.agreement)
        assert bool(routers(model)) == (count > 1)
    assert agreement[1] > agreement[0]


def test_models_without_choices_and_too_few_inputs_are_refused():
    model, example, calls = gated("vit")
    with pytest.raises(UsageError, match="four at least"):
        consolidate(model, example, calls[:3])
    with pytest.raises(UsageError, match="at least 1"):
        consolidate(model, example, calls, experts=0)
    remove(model)
    with pytest.raises(UsageError, match="no gates"):
        consolidate(model, example, calls)
