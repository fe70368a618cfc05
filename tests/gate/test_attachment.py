"""The record on a gated model, and which gates are whose."""

import pytest
from torch import nn

from dynprune.errors import UsageError
from dynprune.gate.attachment import attached, gate_parameters, gates, is_gated
from dynprune.gate.inject import remove
from tests.gate.zoo_laws import gated_animal


def test_a_record_is_on_a_gated_model_alone():
    model, _, _, record = gated_animal("vit")
    assert is_gated(model)
    assert attached(model) is record
    remove(model)
    assert not is_gated(model)
    with pytest.raises(UsageError, match=r"not gated: call dynprune\.apply first"):
        attached(model)


def test_gates_are_those_of_the_model_and_a_wrapper_shows_them_as_well():
    model, _, _, record = gated_animal("vit")
    names = [plan.group.name for plan in record.plans if plan.mode != "refused"]
    assert sorted(gates(model)) == sorted(names)
    assert list(gates(nn.Sequential(model))) == list(gates(model))
    assert {g.members.scope for g in gates(model).values()} == {record.scope}


def test_the_parameters_of_the_gates_are_no_parameters_of_the_dense_model():
    model, *_ = gated_animal("vit")
    brought = {id(p) for p in gate_parameters(model)}
    remove(model)
    assert brought
    assert not brought & {id(p) for p in model.parameters()}
