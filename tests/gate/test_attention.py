"""Which integers of an attention module say how wide its heads are."""

import torch
from torch import nn

from dynprune.gate.attention import head_attribute_sets, head_attributes, narrow
from dynprune.gate.config import GateConfig
from dynprune.gate.neuron_gate import NeuronGate
from dynprune.gate.plan import HeadAttribute
from dynprune.graph import Channels
from dynprune.graph.neurons import NeuronGroup


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(32, 32), nn.Linear(32, 32)
        self.head_dim, self.all_head_size, self.heads = 8, 32, 4
        self.scale, self.flag, self._width = 8.0, True, 8


def group(model, heads=4):
    made = [Channels(f"attention.{name}", torch.arange(32)[:, None], 32) for name in "qk"]
    return NeuronGroup("attention.q", "qk", tuple(made), (), (), 32, heads)


def host():
    model = nn.Module()
    model.attention = Attention()
    return model


def test_integers_of_one_head_s_width_or_all_heads_together_are_found():
    model = host()
    found = head_attributes(model, group(model))
    assert found == [
        HeadAttribute("attention", "head_dim", True),
        HeadAttribute("attention", "all_head_size", False),
    ]


def test_a_group_without_heads_or_without_a_host_has_none():
    model = host()
    assert head_attributes(model, group(model, heads=0)) == []
    whole = Channels("q", torch.arange(32)[:, None], 32)
    bare = NeuronGroup("q", "qk", (whole,), (), (), 32, 4)
    assert head_attributes(model.attention, bare) == []


def test_every_set_of_attributes_is_tried_small_ones_first():
    both = [HeadAttribute("a", name, True) for name in ("one", "two")]
    sets = list(head_attribute_sets(both))
    assert sets == [(), (both[0],), (both[1],), tuple(both)]


def test_gates_narrow_the_attributes_together():
    model = host()
    config = GateConfig(prune_ratio=0.5, align=1)
    gates = [NeuronGate(k, k, 32, 32, 4, config=config).eval() for k in ("qk", "v")]
    for gate in gates:
        gate.verified = "compact"
    attributes = [HeadAttribute("attention", "head_dim", True)]
    narrow(model, attributes, gates)
    assert model.attention.head_dim == 4
    assert gates[0].partners == [gates[1]]
    narrow(model, (), gates)
    assert model.attention.head_dim == 8
    assert gates[0].partners == []
