"""Attention modules that keep keys and values from call to call are found by running."""

import pytest
import torch
import transformers as hf
from torch import nn

from dynprune.example import Example
from dynprune.gate.caches import modules_with_caches
from tests.zoo import ZOO


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x, past=None):
        return self.linear(x)


class Decoder(nn.Module):
    """Hands a cache to one of its two attentions when it is asked to."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Attention(), Attention()

    def forward(self, x, use_cache=False):
        return self.second(self.first(x, past={} if use_cache else None))


def test_a_module_that_is_handed_a_cache_is_found_though_the_example_uses_none():
    call = Example((torch.randn(2, 3, 8),))
    model = Decoder()
    assert modules_with_caches(model, call) == {"first"}
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_switches_positions_and_tensors_beside_a_cache_are_none():
    class Plain(Decoder):
        def forward(self, x):
            return self.second(self.first(x, past=torch.tensor(3)), past=True)

    assert modules_with_caches(Plain(), Example((torch.randn(2, 3, 8),))) == frozenset()


def test_models_without_such_parameters_are_not_run():
    class Fails(nn.Module):
        def forward(self, x):
            raise AssertionError

    assert modules_with_caches(Fails(), Example((torch.zeros(2),))) == frozenset()


def test_hooks_are_gone_after_a_failure():
    class Fails(Decoder):
        def forward(self, x):
            raise ValueError("no")

    model = Fails()
    with pytest.raises(ValueError, match="no"):
        modules_with_caches(model, Example((torch.zeros(2),)))
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_decoder_of_transformers_keeps_the_keys_of_its_attentions():
    config = hf.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, vocab_size=64)
    model = hf.T5Model(config).eval()
    found = modules_with_caches(model, ZOO["t5"].example())
    assert {name for name in found if name.endswith("Attention")}
    assert all(name.startswith("decoder") for name in found)
