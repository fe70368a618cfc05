"""Queries and keys behind a batch norm: what is skipped is zero where they meet."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dynprune.example import Example
from dynprune.gate import gates, remove, set_prune_ratio, set_sparsity_progress
from dynprune.gate.hiding import HidingCarrier
from tests.gate.zoo_laws import difference, error, gate_all, run


class Normed(nn.Module):
    """A linear layer and a batch norm over flattened tokens, as LeViT has them."""

    def __init__(self, outputs):
        super().__init__()
        self.linear, self.norm = nn.Linear(32, outputs, bias=False), nn.BatchNorm1d(outputs)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2.0)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x):
        x = self.linear(x)
        return self.norm(x.flatten(0, 1)).reshape_as(x)


class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.o = Normed(96), nn.Linear(32, 32)

    def forward(self, x):
        q, k, v = self.qkv(x).view(*x.shape[:2], 4, 24).transpose(1, 2).split([8, 8, 8], -1)
        y = (q @ k.transpose(-1, -2) * 8**-0.5).softmax(-1) @ v
        return x + self.o(F.hardswish(y.transpose(1, 2).reshape(x.shape)))


class Apart(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = Normed(32), Normed(32), Normed(32), nn.Linear(32, 32)

    def forward(self, x):
        q, k, v = (f(x).view(*x.shape[:2], 4, 8).transpose(1, 2) for f in (self.q, self.k, self.v))
        return x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class OneSide(Apart):
    """Keys alone are normed."""

    def __init__(self):
        super().__init__()
        self.q = nn.Linear(32, 32)


BOTH = [Fused, Apart]


def example(rows=2, tokens=9):
    return Example((torch.randn(rows, tokens, 32, generator=torch.Generator().manual_seed(rows)),))


def gated(build):
    torch.manual_seed(0)
    model = nn.Sequential(build()).eval()
    return model, gate_all(model, example())


@pytest.mark.parametrize("build", BOTH)
def test_normed_queries_and_keys_are_compact_and_equal_masked_execution(build):
    model, record = gated(build)
    assert {(p.group.kind, p.mode) for p in record.plans} == {("qk", "compact"), ("v", "compact")}
    assert any(isinstance(module, HidingCarrier) for module in model.modules())
    assert difference(model, example(3)) < 1e-5


@pytest.mark.parametrize("build", BOTH)
def test_with_nothing_skipped_the_model_is_the_dense_one_and_so_it_is_without_gates(build):
    torch.manual_seed(0)
    dense = nn.Sequential(build()).eval()
    wanted = run(dense, example(3))
    model = copy.deepcopy(dense)
    gate_all(model, example())
    set_prune_ratio(model, 0.0)
    assert error(run(model, example(3)), wanted) < 1e-5
    remove(model)
    assert error(run(model, example(3)), wanted) == 0.0
    assert model.state_dict().keys() == dense.state_dict().keys()


@pytest.mark.parametrize("build", BOTH)
def test_training_with_gates_leaves_the_statistics_those_of_the_dense_model(build):
    torch.manual_seed(0)
    dense = nn.Sequential(build())
    model = copy.deepcopy(dense).eval()
    gate_all(model, example())
    set_sparsity_progress(model, 1.0)
    for one in (model.train(), dense.train()):
        one(example(3).args[0])
    remove(model)
    for name, buffer in dense.named_buffers():
        assert torch.allclose(model.get_buffer(name), buffer, atol=1e-5), name


def test_values_reach_the_keys_and_give_the_predictor_its_gradient():
    model, _ = gated(Apart)
    model.train()(example(3).args[0]).square().sum().backward()
    (gate,) = [gate for gate in gates(model).values() if gate.kind == "qk"]
    assert gate.predictor.up.weight.grad.abs().max() > 0


def test_a_norm_on_one_side_alone_is_refused_with_the_reason():
    _, record = gated(OneSide)
    (plan,) = [plan for plan in record.plans if plan.group.kind == "qk"]
    assert plan.mode == "refused"
    assert plan.reason == "a skipped query or key would not stay zero: the bias of 0.k.norm"
