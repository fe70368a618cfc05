"""Refitted consumers are the least squares that they claim to be."""

import copy

import pytest
import torch
from torch import nn

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.gate import GateConfig, gate_model, gates, recording, set_execution
from dynprune.graph import find_groups
from dynprune.planning.calibrate import calibrate
from dynprune.planning.refit import refit_consumers
from tests.gate.zoo_laws import error, run


class OneLayer(nn.Module):
    """A hidden layer and nothing else, so that its least squares can be written down."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 5)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


def made(**config):
    torch.manual_seed(0)
    model = OneLayer().eval()
    random = torch.Generator().manual_seed(1)
    calls = [Example((torch.randn(3, 40, 6, generator=random),)) for _ in range(4)]
    groups = find_groups(model, calls[0]).groups
    settings = GateConfig(align=1, **{"prune_ratio": 0.5, **config})
    gate_model(model, calls[0], groups, {group.name: settings for group in groups})
    calibrate(model, calls)
    return model, calls


def squared_error(model, dense, calls):
    found = [(run(model, call)[0] - run(dense, call)[0]).square().mean() for call in calls]
    return float(torch.stack(found).mean())


@pytest.mark.parametrize("compensation", ["zero", "mean"])
@pytest.mark.parametrize("order", ["fixed", "dynamic"])
def test_no_weight_and_bias_come_nearer_to_the_dense_output(order, compensation):
    model, calls = made(order=order, compensation=compensation)
    dense = copy.deepcopy(model)
    for gate in gates(dense).values():
        gate.set_prune_ratio(0.0)
    before = squared_error(model, dense, calls)
    assert refit_consumers(model, calls, ridge=1e-9) == 1
    (gate,) = gates(model).values()
    rows, wanted = [], []
    for call in calls:
        (x,) = call.tensors
        hidden = torch.relu(x @ model.up.weight.detach().t() + model.up.bias.detach())
        with recording() as seen:
            call.run(model)
        ((found,),) = seen.values()
        factor = found.selection.keep.double()[:, None]
        if order == "dynamic":
            assert found.output.factor is not None
            factor = factor * found.output.factor.detach().double()[:, None]
        mean = 0.0 if gate.mean is None else gate.mean
        off = (hidden - mean) * factor
        rows.append(torch.cat([off, torch.ones_like(off[..., :1])], -1).flatten(0, 1).double())
        wanted.append(run(dense, call)[0].flatten(0, 1))
    best = torch.linalg.lstsq(torch.cat(rows), torch.cat(wanted), driver="gelsd")
    residual = torch.cat(rows) @ best.solution - torch.cat(wanted)
    least = float(residual.square().mean())
    assert squared_error(model, dense, calls) == pytest.approx(least, rel=1e-3)
    assert least < 0.9 * before


def test_where_nothing_is_skipped_nothing_changes():
    model, calls = made(prune_ratio=0.0, order="fixed")
    before = run(model, calls[0])
    refit_consumers(model, calls)
    assert error(run(model, calls[0]), before) < 1e-5  # a linear system's rounding


def test_a_firm_ridge_holds_the_weight_and_moves_the_bias_alone():
    model, calls = made(order="fixed")
    before = model.down.weight.detach().clone()
    refit_consumers(model, calls, ridge=1e9)
    assert error([model.down.weight.detach()], [before]) < 1e-5


def test_inputs_weigh_the_same_one_by_one_or_in_a_batch():
    one, calls = made()
    other = copy.deepcopy(one)
    refit_consumers(one, calls)
    refit_consumers(other, [Example((x[None],)) for call in calls for x in call.tensors[0]])
    # sums of float32 in two orders
    assert error([other.down.weight.detach()], [one.down.weight.detach()]) < 1e-4


def test_compact_still_equals_masked():
    model, calls = made()
    refit_consumers(model, calls)
    compact = run(model, calls[0])
    set_execution(model, "masked")
    assert error(run(model, calls[0]), compact) < 1e-5


def test_without_inputs_there_is_nothing_to_fit():
    model, _ = made()
    with pytest.raises(UsageError, match="at least one input"):
        refit_consumers(model, [])
