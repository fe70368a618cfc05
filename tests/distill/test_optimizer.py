"""Parameter groups, learning rates, and a state that goes through plain tensors."""

import pytest
import torch
from torch import nn

from dynprune.distill import optimizer as optimizers
from dynprune.distill.optimizer import AdamW
from dynprune.errors import InputError


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Conv2d(4, 4, 1))


def step(net, optimizer):
    torch.manual_seed(1)
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()


def test_matrices_decay_and_norms_and_biases_do_not():
    net = model()
    optimizer = optimizers.build(net, AdamW(weight_decay=0.1))
    decay = {n: g["weight_decay"] for g in optimizer.param_groups for n in g["names"]}
    assert decay == {
        "0.weight": 0.1,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
        "2.weight": 0.1,
        "2.bias": 0.0,
    }


def test_gate_parameters_have_a_learning_rate_of_their_own():
    net = model()
    optimizer = optimizers.build(net, AdamW(lr=0.1, gate_lr_factor=5.0), list(net[0].parameters()))
    optimizers.set_learning_rate(optimizer, 0.5)
    rates = {n: g["lr"] for g in optimizer.param_groups for n in g["names"]}
    assert rates["0.weight"] == rates["0.bias"] == pytest.approx(0.25)
    assert rates["1.weight"] == rates["2.weight"] == pytest.approx(0.05)


def test_frozen_parameters_are_left_out():
    net = model()
    net[0].requires_grad_(False)
    optimizer = optimizers.build(net, AdamW())
    names = {n for g in optimizer.param_groups for n in g["names"]}
    assert names == {"1.weight", "1.bias", "2.weight", "2.bias"}


def test_an_optimizer_goes_on_from_saved_tensors_as_if_it_had_never_stopped():
    net, other = model(), model()
    optimizer = optimizers.build(net, AdamW(lr=0.1))
    step(net, optimizer)
    resumed = optimizers.build(other, AdamW(lr=0.1))
    other.load_state_dict(net.state_dict())
    saved = {k: v.clone() for k, v in optimizers.state_tensors(optimizer).items()}
    optimizers.load_state(resumed, saved)
    step(net, optimizer)
    step(other, resumed)
    for ours, theirs in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_state_of_an_unknown_parameter_is_refused():
    optimizer = optimizers.build(model(), AdamW())
    with pytest.raises(InputError, match=r"names '9\.weight'"):
        optimizers.load_state(optimizer, {"exp_avg:9.weight": torch.zeros(1)})
