"""Laws that hold a gated model to the dense one, on gated models with a defect."""

import copy

import pytest
import torch
from torch import nn

import dynprune
from dynprune.example import Example
from dynprune.gate import DynamicLinear, gates, set_execution
from dynprune.laws import LAWS, Subject, judge
from dynprune.laws import subject as subjects


@pytest.fixture
def gated(tmp_path):
    """A gated MLP beside its dense form."""
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)).eval()
    model = dynprune.apply(copy.deepcopy(dense), torch.randn(2, 8), "any")
    return Subject(model, dense, (Example((torch.randn(3, 8),)),), tmp_path)


def status(law, subject):
    return judge(law, LAWS[law], subject).status


def test_a_fresh_gate_obeys_both_laws(gated):
    assert status("nothing skipped equals dense", gated) == "ok"
    assert status("compact equals masked", gated) == "ok"


def test_a_changed_weight_is_found_where_nothing_is_skipped(gated):
    consumer = next(m for m in gated.model.modules() if isinstance(m, DynamicLinear) and m.reads)
    with torch.no_grad():
        consumer.weight[0, 0] += 1.0
    assert status("nothing skipped equals dense", gated) == "broken"
    assert status("compact equals masked", gated) == "ok"


def test_a_fast_form_that_differs_from_the_plain_one_is_found(gated, monkeypatch):
    execution = ["compact"]

    def note(model, wanted):
        execution[0] = wanted
        set_execution(model, wanted)

    def off(_module, _args, output):
        return output + float(execution[0] == "compact" and gated_now())

    def gated_now():
        return any(gate.prune_ratio > 0 for gate in gates(gated.model).values())

    monkeypatch.setattr(subjects, "set_execution", note)
    gated.model.register_forward_hook(off)
    assert status("compact equals masked", gated) == "broken"
    assert status("nothing skipped equals dense", gated) == "ok"


def test_values_that_were_trained_are_no_plain_choice(gated):
    with torch.no_grad():
        for gate in gates(gated.model).values():
            gate.beta.fill_(0.37)
    verdict = judge("nothing", LAWS["nothing skipped equals dense"], gated)
    assert (verdict.status, verdict.detail[:22]) == ("not tried", "the gates were trained")
