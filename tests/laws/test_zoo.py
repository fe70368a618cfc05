"""Every model of the wider zoo answers; those that can be gated are held to the quick laws."""

import pytest
import torch

import dynprune
from dynprune.errors import DynpruneError
from dynprune.gate import gates
from dynprune.host.outputs import tensors_of
from tests.wider_zoo import WIDER

#: One of each kind that another zoo does not have; `benchmarks/soundness.py` tries them all.
TRIED = (
    "set_transformer",
    "two_towers",
    "dit",
    "queries",
    "conformer",
    "factorised_video",
    "yolos",
)


@pytest.mark.filterwarnings("ignore")  # of transformers, about its own defaults
@pytest.mark.parametrize("name", WIDER)
def test_a_model_of_the_zoo_answers_for_every_row(name):
    call = WIDER[name].call(3)

    def answers():
        model = WIDER[name].made()
        torch.manual_seed(0)  # ViLT draws which patches it looks at
        with torch.no_grad():
            return tensors_of(call.run(model))

    first, second = answers(), answers()
    assert first
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert any(tensor.dim() and tensor.shape[0] == 3 for tensor in first)
    assert all(tensor.isfinite().all() for tensor in first)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TRIED)
def test_a_model_of_the_zoo_is_gated_and_handed_out(name):
    model = WIDER[name].made()
    dynprune.apply(model, WIDER[name].call(2), "any")
    assert gates(model)


@pytest.mark.parametrize("name", ["gmlp", "sasrec"])
def test_what_cannot_be_gated_is_refused_with_its_reason(name):
    with pytest.raises(DynpruneError, match="No neuron group"):
        dynprune.apply(WIDER[name].made(), WIDER[name].call(2), "any")
