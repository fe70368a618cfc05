"""Gated layers, wired by hand, against the formula of the paper written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dynprune.errors import GateError
from dynprune.gate.call import Scope, forcing
from dynprune.gate.compensation import fold_means
from dynprune.gate.config import GateConfig
from dynprune.gate.instances import InstanceLayout
from dynprune.gate.linear import DynamicLinear
from dynprune.gate.neuron_gate import NeuronGate
from dynprune.gate.selection import GateOutput

F64 = torch.float64
WIDTH, HIDDEN = 6, 12
LAYOUTS = ["linear", "transposed", "pointwise"]


class Transposed(nn.Module):
    """A linear layer that keeps its weight as (in, out)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * 0.3)
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


def layer(form, inputs, outputs):
    made = {
        "linear": lambda: nn.Linear(inputs, outputs),
        "transposed": lambda: Transposed(inputs, outputs),
        "pointwise": lambda: nn.Conv2d(inputs, outputs, 1),
    }[form]()
    return DynamicLinear.from_module(made.double())


class Pair(nn.Module):
    """A hidden layer between two gated layers, with a gate of its own."""

    def __init__(self, form, *, index=None, layout=None, bias=True, **config):
        super().__init__()
        self.first, self.second = layer(form, WIDTH, HIDDEN), layer(form, HIDDEN, WIDTH)
        if not bias:
            self.second.bias = None
        self.scope = Scope()
        neurons = HIDDEN if index is None else len(index)
        settings = GateConfig(prune_ratio=0.5, align=1, **config)
        self.gate = NeuronGate(
            "ffn", "ffn", WIDTH, neurons, 0,
            config=settings, scope=self.scope, layout=layout, dtype=F64,
        )  # fmt: skip
        self.first.gates["ffn"] = self.gate
        self.first.bind("makes", self.gate, index, carries_value=False)
        self.second.bind("reads", self.gate, index, carries_value=True)
        self.scope.watch(self, "")
        self.gate.verified = "compact"
        if self.gate.mean is not None:
            self.gate.mean.data.copy_(torch.randn(neurons, dtype=F64))
            with torch.no_grad():
                fold_means(self)
        self.eval()

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def drawn_output(batch, neurons):
    return GateOutput(
        torch.randn(batch, neurons, dtype=F64), torch.rand(batch, neurons, dtype=F64) + 0.5
    )


def by_hand(pair, x, out, index=None):
    """Z = (M (tanh(X W1 + b1) - mean)) W2 + b2 + W2 mean, with channels on the last axis."""
    keep = torch.zeros_like(out.scores).scatter(1, out.scores.topk(pair.gate.kept).indices, 1.0)
    factor, mean = keep * out.factor, pair.gate.mean
    mean = torch.zeros(out.scores.shape[1], dtype=F64) if mean is None else mean
    if index is not None:
        flat = index.flatten()
        many = index.shape[1]
        factor = torch.ones(len(x), HIDDEN, dtype=F64).index_copy(
            1, flat, factor.repeat_interleave(many, 1)
        )
        mean = torch.zeros(HIDDEN, dtype=F64).index_copy(0, flat, mean.repeat_interleave(many))
    w1, w2 = pair.first.matrix, pair.second.matrix
    bias = 0 if pair.second.bias is None else pair.second.bias
    hidden = torch.tanh(torch.einsum("b...i,oi->b...o", x, w1) + pair.first.bias)
    shape = (len(x), *[1] * (x.dim() - 2), HIDDEN)
    hidden = (hidden - mean) * factor.view(shape)
    return torch.einsum("b...i,oi->b...o", hidden, w2) + bias + w2 @ mean


def call(pair, form, x, out):
    with torch.no_grad(), forcing({pair.gate.members: out}):
        if form == "pointwise":
            return pair(x.movedim(-1, 1)).movedim(1, -1)
        return pair(x)


def inputs(form, batch):
    return torch.randn(batch, 3, 4, WIDTH, dtype=F64)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("compensation", ["zero", "mean"])
@pytest.mark.parametrize("execution", ["compact", "scatter", "masked"])
@pytest.mark.parametrize("form", LAYOUTS)
def test_every_execution_of_every_layout_is_the_formula(form, execution, compensation, bias):
    pair = Pair(form, compensation=compensation, bias=bias)
    pair.gate.verified = execution
    for batch in (0, 1, 3):
        x, out = inputs(form, batch), drawn_output(batch, HIDDEN)
        found = call(pair, form, x, out)
        assert torch.allclose(found, by_hand(pair, x, out), rtol=1e-10), batch


@pytest.mark.parametrize("execution", ["scatter", "masked"])
@pytest.mark.parametrize("form", LAYOUTS)
def test_neurons_of_several_channels_among_others_are_the_formula(form, execution):
    index = torch.tensor([[0, 3], [10, 2], [5, 7], [1, 8]])
    pair = Pair(form, index=index)
    pair.gate.verified = execution
    for batch in (0, 1, 3):
        x, out = inputs(form, batch), drawn_output(batch, len(index))
        found = call(pair, form, x, out)
        assert torch.allclose(found, by_hand(pair, x, out, index), rtol=1e-10), batch


@pytest.mark.parametrize("execution", ["compact", "scatter", "masked"])
def test_sequence_first_and_folded_rows_are_the_formula_of_their_instances(execution):
    out = drawn_output(3, HIDDEN)
    x = torch.randn(3, 8, WIDTH, dtype=F64)
    pair = Pair("linear", layout=InstanceLayout(1))
    pair.gate.verified = execution
    found = call(pair, "linear", x.transpose(0, 1), out).transpose(0, 1)
    assert torch.allclose(found, by_hand(pair, x, out), rtol=1e-10)

    class Windows(Pair):
        def forward(self, x):
            rows = x.reshape(-1, 2, WIDTH)  # four windows an instance
            return super().forward(rows).reshape(x.shape)

    pair = Windows("linear", layout=InstanceLayout(0, folded=True))
    pair.gate.verified = execution
    assert torch.allclose(call(pair, "linear", x, out), by_hand(pair, x, out), rtol=1e-10)


def test_a_pre_activation_gate_pools_what_the_layer_computes():
    pair = Pair("linear", source="preactivation")
    pair.gate.predictor = None
    seen = []
    pair.gate.scores = lambda tokens, _real: seen.append(tokens) or drawn_output(3, HIDDEN)
    x = torch.randn(3, 4, WIDTH, dtype=F64)
    with torch.no_grad():
        pair(x)
        wanted = F.linear(x, pair.first.weight, pair.first.bias).mean(1, keepdim=True)
    assert torch.allclose(seen[0], wanted)


@pytest.mark.parametrize("form", LAYOUTS)
def test_parameters_are_those_of_the_layer_that_is_replaced(form):
    module = {"linear": nn.Linear(4, 6), "pointwise": nn.Conv1d(4, 6, 1)}.get(
        form, Transposed(4, 6)
    )
    made = DynamicLinear.from_module(module)
    assert made.weight is module.weight
    assert made.bias is module.bias
    assert (made.in_features, made.out_features) == (4, 6)
    assert DynamicLinear.from_module(made) is made
    x = torch.randn(2, 4, 5) if form == "pointwise" else torch.randn(2, 5, 4)
    assert torch.allclose(made(x), module(x), atol=1e-6)


def test_a_gated_layer_outside_every_call_says_what_to_call():
    pair = Pair("linear")
    with pytest.raises(GateError, match="outside a call of its model"):
        pair.second(torch.randn(1, 4, HIDDEN, dtype=F64))


def test_its_text_names_sizes_and_groups():
    text = repr(Pair("linear"))
    assert "in_features=6, out_features=12, bias=True, makes=[ffn], reads=[]" in text
    assert "in_features=12, out_features=6, bias=True, makes=[], reads=[ffn]" in text
