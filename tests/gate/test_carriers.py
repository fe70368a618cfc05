"""Layers that pass neurons on: narrow ones compute the kept channels of the full ones."""

import pytest
import torch
from torch import nn

from dynprune.errors import GateError
from dynprune.example import Example
from dynprune.gate.call import Scope
from dynprune.gate.carriers import carry
from dynprune.gate.config import GateConfig
from dynprune.gate.neuron_gate import NeuronGate
from dynprune.gate.selection import GateOutput, select
from tests.gate.zoo_laws import difference, gate_all

CHANNELS, KEPT = 8, 3
CONVOLUTIONS = {
    "1d": lambda: nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS),
    "2d": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS),
    "strided": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, 2, 2, dilation=2, groups=CHANNELS),
    "no bias": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, groups=CHANNELS, bias=False),
    "same": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding="same", groups=CHANNELS),
    "3d": lambda: nn.Conv3d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS),
}
NORMS = {
    "1d": lambda: nn.BatchNorm1d(CHANNELS),
    "2d": lambda: nn.BatchNorm2d(CHANNELS),
    "plain": lambda: nn.BatchNorm2d(CHANNELS, affine=False),
}


class Carrying(nn.Module):
    """A carrier in a call in which something was chosen."""

    def __init__(self, source, batch, execution):
        super().__init__()
        self.gate = NeuronGate("g", "ffn", 4, CHANNELS, 0, config=GateConfig(), scope=Scope())
        self.carrier = carry(source, self.gate)
        output = GateOutput(torch.randn(batch, CHANNELS), None)
        self.selection = select(output, KEPT, 1, mean=None, execution=execution)
        self.gate.members.scope.watch(self, "")
        self.eval()

    def forward(self, x):
        members = self.gate.members
        members.scope.current().selections[members] = self.selection
        return self.carrier(x)


def settled(norm):
    """A norm whose statistics are not those of its start."""
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm.eval()


def picture(source, batch):
    sizes = {"1d": 1, "2d": 2, "3d": 3}[type(source).__name__[-2:]]
    return torch.randn(batch, CHANNELS, *[6] * sizes)


def kept(x, index):
    shape = (*index.shape, *[1] * (x.dim() - 2))
    return x.gather(1, index.view(shape).expand(*index.shape, *x.shape[2:]))


MAKERS = [*CONVOLUTIONS.values(), *(lambda make=make: settled(make()) for make in NORMS.values())]
IDS = [*(f"conv {name}" for name in CONVOLUTIONS), *(f"norm {name}" for name in NORMS)]


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("make", MAKERS, ids=IDS)
def test_a_narrow_carrier_computes_the_kept_channels_of_the_full_one(make, batch):
    source = make()
    x = picture(source, batch)
    module = Carrying(source, batch, "compact")
    index = module.selection.index
    with torch.no_grad():
        found, full = module(kept(x, index)), source(x)
        assert torch.allclose(found, kept(full, index), atol=1e-5)
        for execution in ("masked", "scatter"):
            assert torch.equal(Carrying(source, batch, execution)(x), full)


@pytest.mark.parametrize("make", MAKERS, ids=IDS)
def test_rows_that_are_parts_of_instances_keep_the_channels_of_theirs(make):
    source = make()
    module = Carrying(source, 3, "compact")
    x = picture(source, 6)
    index = module.selection.index.repeat_interleave(2, 0)
    with torch.no_grad():
        assert torch.allclose(module(kept(x, index)), kept(source(x), index), atol=1e-5)
    with pytest.raises(GateError, match="got 5 rows, which do not divide into the 3 inputs"):
        module(kept(x, index)[:5])


@pytest.mark.parametrize("rows", [3, 6])
@pytest.mark.parametrize("make", MAKERS, ids=IDS)
def test_a_compiled_carrier_computes_the_same(make, rows):
    source = make()
    module = Carrying(source, 3, "compact")
    index = module.selection.index.repeat_interleave(rows // 3, 0)
    x = kept(picture(source, rows), index)
    torch._dynamo.reset()
    compiled = torch.compile(module.carrier.forward, backend="eager", fullgraph=True)
    module.carrier.forward, eager = compiled, module.carrier.forward
    with torch.no_grad():
        found = module(x)
        module.carrier.forward = eager
        assert torch.allclose(found, module(x), atol=1e-5)


def test_a_carrier_of_channels_last_maps_computes_the_same():
    source = CONVOLUTIONS["2d"]()
    module = Carrying(source, 3, "compact")
    x = kept(picture(source, 3), module.selection.index)
    with torch.no_grad():
        found = module(x.contiguous(memory_format=torch.channels_last))
        assert torch.allclose(found, module(x), atol=1e-5)


def test_parameters_and_statistics_stay_those_of_the_layer():
    convolution, norm = CONVOLUTIONS["2d"](), settled(NORMS["2d"]())
    gate = NeuronGate("g", "ffn", 4, CHANNELS, 0, config=GateConfig())
    carried = carry(convolution, gate)
    assert carried.weight is convolution.weight
    assert (carried.kernel_size, carried.stride) == ((3, 3), (1, 1))
    narrow = carry(norm, gate)
    assert narrow.source is norm
    assert narrow.num_features == CHANNELS


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (nn.Conv2d(8, 8, 3), "one filter a channel"),
        (nn.Conv2d(8, 16, 3, groups=8), "one filter a channel"),
        (nn.Conv2d(8, 8, 3, groups=8, padding=1, padding_mode="reflect"), "reflect"),
        (nn.BatchNorm2d(8, track_running_stats=False), "without running statistics"),
        (nn.ConvTranspose2d(8, 8, 3, groups=8), "ConvTranspose2d between the linears"),
        (nn.GroupNorm(2, 8), "GroupNorm between the linears"),
    ],
)
def test_what_cannot_be_narrowed_is_refused_with_the_reason(module, why):
    with pytest.raises(GateError, match=why):
        carry(module, NeuronGate("g", "ffn", 4, CHANNELS, 0, config=GateConfig()))


class Folded(nn.Module):
    """A hidden layer whose tokens, or frames, are rows of the carrier."""

    def __init__(self, carrier):
        super().__init__()
        self.up, self.carrier, self.down = nn.Linear(16, 32), carrier, nn.Linear(32, 16)
        self.of_tokens = isinstance(carrier, nn.BatchNorm1d)

    def forward(self, x):
        h = self.up(x)
        if self.of_tokens:
            return x + self.down(torch.relu(self.carrier(h.flatten(0, 1)).view_as(h)))
        maps = h.unflatten(1, (3, 4, 4)).permute(0, 1, 4, 2, 3).flatten(0, 1)  # 3 frames
        maps = self.carrier(maps).unflatten(0, (x.shape[0], 3)).permute(0, 1, 3, 4, 2)
        return x + self.down(torch.relu(maps.flatten(1, 3)))


@pytest.mark.parametrize(
    "carrier",
    [
        settled(nn.BatchNorm1d(32)),
        settled(nn.BatchNorm2d(32)),
        nn.Conv2d(32, 32, 3, 1, 1, groups=32),
    ],
    ids=["norm of tokens", "norm of frames", "convolution of frames"],
)
def test_a_hidden_layer_with_folded_rows_is_compact_and_equals_masked_execution(carrier):
    torch.manual_seed(0)
    model = nn.Sequential(Folded(carrier)).eval()
    (plan,) = gate_all(model, Example((torch.randn(2, 48, 16),))).plans
    assert (plan.mode, plan.reason) == ("compact", None)
    assert difference(model, Example((torch.randn(3, 48, 16),))) < 1e-5
