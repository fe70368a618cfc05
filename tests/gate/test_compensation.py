"""Means as a constant of the consumers: nothing skipped is the dense function, before and after."""

import pytest
import torch
from torch import nn

from dynprune.example import Example
from dynprune.gate import fold_means, gates, remove, set_prune_ratio
from dynprune.gate.linear import DynamicLinear
from dynprune.host.modes import at_inference
from tests.gate.zoo_laws import gate_all


class Block(nn.Module):
    """A hidden layer with two readers, one of them without a bias."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 6, bias=False)
        self.side = nn.Linear(16, 4)

    def forward(self, x):
        hidden = torch.tanh(self.up(x))
        return self.down(hidden), self.side(hidden)


def gated(*, means=True):
    torch.manual_seed(0)
    model = Block().eval()
    call = Example((torch.randn(3, 5, 6),))
    gate_all(model, call)
    (gate,) = gates(model).values()
    gate.prior.normal_()
    if means:
        gate.mean.data.normal_()
        fold_means(model)
    return model, gate, call


def dense(model, call):
    """The block written out, from the weights that the model has now."""
    hidden = torch.tanh(call.args[0] @ model.up.weight.t() + model.up.bias)
    side = hidden @ model.side.weight.t() + model.side.bias
    return hidden @ model.down.weight.t(), side


def same(found, wanted, tolerance=1e-5):
    return all(torch.allclose(f, w, atol=tolerance) for f, w in zip(found, wanted, strict=True))


def test_the_offset_is_the_consumer_s_weight_times_the_means():
    model, gate, _ = gated()
    for layer in (model.down, model.side):
        assert torch.allclose(layer.offset, layer.weight @ gate.mean, atol=1e-6)
    assert model.up.offset is None


def test_with_nothing_skipped_the_dense_function_is_computed_whatever_the_means():
    model, _, call = gated()
    set_prune_ratio(model, 0.0)
    with at_inference(model):
        assert same(call.run(model), dense(model, call))


def test_a_skipped_neuron_counts_as_its_mean():
    model, gate, call = gated()
    with at_inference(model):
        found = call.run(model)
        hidden = torch.tanh(call.args[0] @ model.up.weight.t() + model.up.bias)
        keep = torch.zeros(16)
        keep[gate.prior.expand(1, -1).topk(8, sorted=False).indices[0]] = 1
        hidden = torch.where(keep.bool(), hidden, gate.mean)
        wanted = hidden @ model.down.weight.t(), hidden @ model.side.weight.t() + model.side.bias
        assert same(found, wanted)


def test_taking_the_gates_out_of_untouched_weights_loses_no_bit_and_adds_no_bias():
    torch.manual_seed(0)
    before = Block().state_dict()
    model, *_ = gated()
    remove(model)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_what_weights_gained_over_the_means_stays_when_the_gates_go():
    model, _, call = gated()
    set_prune_ratio(model, 0.0)
    with torch.no_grad():
        for layer in (model.up, model.down, model.side):
            layer.weight.add_(torch.randn_like(layer.weight) * 0.1)
    with at_inference(model):
        computed = call.run(model)
    remove(model)
    assert type(model.down) is nn.Linear
    with at_inference(model):
        assert same(call.run(model), computed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_another_precision_is_no_change_of_the_weights(dtype):
    model, *_ = gated()
    model.to(dtype)
    wanted = {name: p.clone() for name, p in model.state_dict().items() if "gates" not in name}
    remove(model)
    assert model.down.bias is None
    assert torch.equal(model.side.bias, wanted["side.bias"])


def test_settling_twice_is_settling_once():
    model, _, call = gated()
    with torch.no_grad():
        model.down.weight.mul_(1.3)
    remove(model)
    once = model.down.bias.clone()
    gate_all(model, call)
    remove(model)
    assert torch.equal(model.down.bias, once)


def test_layers_of_models_without_means_have_no_offset():
    model, gate, _ = gated(means=False)
    assert gate.mean is not None
    assert not any(
        bool(m.offset.any()) for m in model.modules() if isinstance(m, DynamicLinear) and m.reads
    )
