"""The moving average against its recurrence."""

import pytest
import torch
from torch import nn

from dynprune.distill.ema import MovingAverage, effective_decay


def test_the_average_follows_its_recurrence():
    net = nn.Linear(2, 2, bias=False)
    net.weight.data.fill_(0.0)
    average = MovingAverage(net, 0.5)
    expected = 0.0
    for step, value in enumerate((1.0, 3.0, -2.0, 8.0)):
        net.weight.data.fill_(value)
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        assert average.tensors["weight"][0, 0].item() == pytest.approx(expected)


def test_the_decay_grows_to_its_limit():
    decays = [effective_decay(0.9, step) for step in range(200)]
    assert decays == sorted(decays)
    assert decays[0] == 0.1
    assert decays[-1] == 0.9


def test_the_model_holds_the_average_for_a_while_alone():
    net = nn.BatchNorm1d(3)
    average = MovingAverage(net, 0.9)
    before = {name: value.clone() for name, value in average.tensors.items()}
    net.weight.data.fill_(5.0)
    net.num_batches_tracked += 7
    with average.applied():
        assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())
    assert net.weight[0].item() == 5.0
    assert net.num_batches_tracked.item() == 7


def test_the_models_own_weights_come_back_after_an_error():
    net = nn.Linear(1, 1)
    average = MovingAverage(net, 0.9)
    net.weight.data.fill_(5.0)
    with pytest.raises(RuntimeError), average.applied():
        raise RuntimeError
    assert net.weight.item() == 5.0


def test_integers_are_copied():
    net = nn.BatchNorm1d(3)
    average = MovingAverage(net, 0.9)
    net.num_batches_tracked += 7
    average.update(0)
    assert average.tensors["num_batches_tracked"].item() == 7
