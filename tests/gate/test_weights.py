"""Whatever changes the weights of a gated model, the next call computes with what they are now."""

import copy

import pytest
import torch
from torch import nn

from dynprune.example import Example
from dynprune.gate import gates, recording, remove, set_execution, set_prune_ratio
from dynprune.host.modes import at_inference
from tests.gate.zoo_laws import gate_all, stir

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1, torch.float64: 1e-6}


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 32), nn.Linear(32, 8, bias=False)

    def forward(self, x):
        return self.fc2(torch.tanh(self.fc1(x)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = Mlp().eval()
    gate_all(made, Example((torch.randn(2, 5, 8),)))
    stir(made)
    return made


def by_hand(model, x, seen):
    """W2 (M (tanh(W1 x + b1) - mean)) + offset, with what is in the model now."""
    (gate,) = gates(model).values()
    mask = (seen.selection.keep * seen.output.factor)[:, None].double()
    w1, b1 = model.fc1.weight.double(), model.fc1.bias.double()
    hidden = torch.tanh(x.double() @ w1.t() + b1)
    w2, constant = model.fc2.weight.double(), model.fc2.offset.double()
    if model.fc2.bias is not None:
        constant = constant + model.fc2.bias.double()
    return ((hidden - gate.mean.double()) * mask) @ w2.t() + constant


def check(model, dtype=torch.float32, x=None):
    x = torch.randn(3, 5, 8) if x is None else x
    x = x.to(model.fc1.weight.dtype)
    with torch.no_grad():
        for execution in ("compact", "masked"):
            set_execution(model, execution)
            with recording() as seen:
                found = model(x)
            (observation,) = next(iter(seen.values()))
            wanted = by_hand(model, x, observation)
            error = (found.double() - wanted).abs().max() / wanted.abs().max()
            assert error < TOLERANCE[dtype], (execution, float(error))


def optimizer(model):
    chosen = torch.optim.AdamW(model.parameters(), lr=0.05)
    model.train()
    model(torch.randn(4, 5, 8)).square().sum().backward()
    chosen.step()
    model.eval()


def through_data(model):
    model.fc2.weight.data.mul_(1.5)
    model.fc1.bias.data = model.fc1.bias.data + 1


def in_place(model):
    with torch.no_grad():
        model.fc2.weight[:, ::2] += 0.3
        model.fc1.weight.copy_(torch.randn(32, 8))


def loaded(model):
    state = {k: v + 0.1 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(state)


def assigned(model):
    state = {k: v + 0.1 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def replaced(model):
    model.fc2.weight = nn.Parameter(torch.randn(8, 32))


@pytest.mark.parametrize(
    "change",
    [optimizer, through_data, in_place, loaded, assigned, replaced],
    ids=lambda f: f.__name__,
)
def test_a_change_of_the_weights_is_seen_by_the_next_call(model, change):
    check(model)
    before = model.fc2.weight.detach().clone()
    change(model)
    assert not torch.equal(model.fc2.weight, before)
    check(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_another_precision_computes_with_the_weights_cast(model, dtype):
    check(model)
    model.to(dtype)
    assert model.fc2.offset.dtype == dtype
    check(model, dtype)


def test_a_moving_average_computes_with_its_own_weights(model):
    average = torch.optim.swa_utils.AveragedModel(model)
    for _ in range(3):
        optimizer(model)
        average.update_parameters(model)
    assert not torch.equal(average.module.fc2.weight, model.fc2.weight)
    check(average.module)
    check(model)
    assert torch.equal(average(torch.ones(1, 2, 8)), average.module(torch.ones(1, 2, 8)))


def test_autocast_in_and_out_computes_with_the_weights_of_the_moment(model):
    x = torch.randn(3, 5, 8)
    with torch.no_grad():
        plain = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            coarse = model(x)
            assert coarse.dtype == torch.bfloat16
        assert (coarse.float() - plain).abs().max() < 0.1 * plain.abs().max()
        assert torch.equal(model(x), plain)
        in_place(model)
        with torch.autocast("cpu", torch.bfloat16):
            moved = model(x)
    check(model, x=x)
    assert (moved.float() - coarse.float()).abs().max() > 0.1 * plain.abs().max()


@pytest.mark.filterwarnings("ignore")  # torch calls the whole of it deprecated
def test_dynamic_quantisation_leaves_gated_layers_as_they_are(model):
    try:
        quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})
    except RuntimeError as error:  # built without an engine for it
        pytest.skip(str(error))
    assert type(quantised.fc1) is type(model.fc1)
    x = torch.randn(3, 5, 8)
    with torch.no_grad():
        plain = model(x)
        assert (quantised(x) - plain).abs().max() < 0.2 * plain.abs().max()  # its predictors alone


def test_taking_the_gates_out_gives_the_dense_function_of_the_present_weights(model):
    optimizer(model)
    set_prune_ratio(model, 0.0)
    for gate in gates(model).values():
        nn.init.zeros_(gate.predictor.up.weight)
        nn.init.zeros_(gate.predictor.up.bias)
    x = torch.randn(3, 5, 8)
    with at_inference(model):
        gated = model(x)
    w1, b1, w2 = model.fc1.weight, model.fc1.bias, model.fc2.weight
    remove(model)
    assert type(model.fc2) is nn.Linear
    with at_inference(model):
        dense = torch.tanh(x @ w1.t() + b1) @ w2.t() + model.fc2.bias
        assert torch.allclose(model(x), dense, atol=1e-5)
        assert torch.allclose(model(x), gated, atol=1e-5)
