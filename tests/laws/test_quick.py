"""What every gated model is held to before it is handed out."""

import copy

import pytest
import torch
from torch import nn

import dynprune
from dynprune.errors import LawError
from dynprune.example import Example
from dynprune.gate import DynamicLinear, is_gated
from dynprune.laws import broken_laws, note_dense


@pytest.fixture
def dense():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)).eval()


EXAMPLE = Example((torch.linspace(-1, 1, 16).view(2, 8),))


def test_a_sound_gate_breaks_none_and_costs_few_runs(dense):
    note = note_dense(dense, EXAMPLE)
    model = dynprune.apply(copy.deepcopy(dense), EXAMPLE, "any")
    runs = []
    model.register_forward_hook(lambda *_: runs.append(1))
    assert broken_laws(model, note, whole=True) == []
    assert len(runs) <= 8


def test_a_weight_that_changed_on_the_way_is_found_but_not_after_a_refit(dense):
    note = note_dense(dense, EXAMPLE)
    model = dynprune.apply(copy.deepcopy(dense), EXAMPLE, "any")
    reader = next(m for m in model.modules() if isinstance(m, DynamicLinear) and m.reads)
    with torch.no_grad():
        reader.weight[0] += 1.0
    (found,) = broken_laws(model, note, whole=True)
    assert found.startswith("nothing skipped equals dense: a small call:")
    assert broken_laws(model, note, whole=False) == []


def test_rows_are_held_to_themselves_where_the_dense_model_is(dense):
    class Joined(nn.Sequential):
        def forward(self, x):
            return super().forward(x) + x.mean(0)

    assert note_dense(dense, EXAMPLE).rows
    assert not note_dense(Joined(*dense).eval(), EXAMPLE).rows
    note = note_dense(dense, EXAMPLE)
    model = dynprune.apply(copy.deepcopy(dense), EXAMPLE, "any")
    model.register_forward_hook(lambda _, args, output: output + (args[0].shape[0] == 1))
    assert all("row" in text for text in broken_laws(model, note, whole=True))
    assert broken_laws(model, note, whole=True)


def test_a_gated_model_that_breaks_a_law_is_not_handed_out(dense, monkeypatch):
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}

    def spoil(model):
        reader = next(m for m in model.modules() if isinstance(m, DynamicLinear) and m.reads)
        model.spoiled = reader.register_forward_hook(lambda _, args, output: output + 1.0)

    monkeypatch.setattr("dynprune.planning.session.start_from_weights", spoil)
    with pytest.raises(LawError, match=r"would be wrong, so it is not kept: .*nothing skipped"):
        dynprune.apply(dense, EXAMPLE, "any")
    dense.spoiled.remove()
    assert not is_gated(dense)
    after = dense.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_model_that_runs_past_its_gates_is_not_handed_out(monkeypatch):
    """It is the dense model, so that no law of equality tells."""
    keeper = Keeping().eval()
    plain = (keeper.up, keeper.down)

    def past_its_gates(model):
        model.layers = list(plain)

    monkeypatch.setattr("dynprune.planning.session.start_from_weights", past_its_gates)
    with pytest.raises(LawError, match="every gate takes part: that of up never ran"):
        dynprune.apply(keeper, Example((torch.randn(2, 5, 16),)), "any")


class Keeping(nn.Module):
    """A hidden layer whose layers its code takes from a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)
        self.layers = [self.up, self.down]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers[1](torch.relu(self.layers[0](x)))
