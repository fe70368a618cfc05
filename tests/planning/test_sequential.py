"""Consumers refitted in sequence are the least squares, on pruned inputs, that they claim to be."""

import copy
import logging

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.gate import GateConfig, gate_model, gates, set_execution
from dynprune.gate.fixed import kept_by
from dynprune.graph import find_groups
from dynprune.host import resume
from dynprune.planning.calibrate import calibrate
from dynprune.planning.refit import refit_consumers
from dynprune.planning.sequential import refit_in_sequence
from tests.gate.zoo_laws import error, run

WIDTH = 8


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = (
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 32),
            nn.Linear(32, WIDTH),
        )
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, WIDTH))

    def forward(self, x):
        return x + self.scale * self.down(torch.relu(self.up(self.norm(x))))


class Residual(nn.Module):
    """Blocks on one residual stream; the last may read the first once more."""

    def __init__(self, blocks=2, skips=False):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.skips = skips

    def forward(self, x):
        first = None
        for block in self.blocks:
            x = block(x + first if self.skips and block is self.blocks[-1] else x)
            first = x if first is None else first
        return x


class OneLayer(nn.Module):
    """A hidden layer that is added to nothing."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 32), nn.Linear(32, 5)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


def inputs(count=16, seed=1):
    random = torch.Generator().manual_seed(seed)
    return [Example((torch.randn(2, 30, WIDTH, generator=random),)) for _ in range(count)]


def gated(model, calls, **config):
    model = model.eval()
    groups = find_groups(model, calls[0]).groups
    settings = GateConfig(align=1, **{"prune_ratio": 0.5, "order": "fixed", **config})
    gate_model(model, calls[0], groups, {group.name: settings for group in groups})
    calibrate(model, calls)
    set_execution(model, "masked")
    return model


def off(model, dense, calls):
    errors = [(run(model, call)[0] - run(dense, call)[0]).square().mean() for call in calls]
    return float(torch.stack(errors).mean())


def dense_of(model):
    dense = copy.deepcopy(model)
    for gate in gates(dense).values():
        gate.set_prune_ratio(0.0)
    return dense


@torch.no_grad()
def test_each_layer_is_fitted_to_the_dense_stream_on_what_the_pruned_ones_give():
    model = Residual().double()
    plain = copy.deepcopy(model)
    calls = [Example((call.args[0].double(),)) for call in inputs(8)]
    model = gated(model, calls, compensation="zero")
    kept = [found.index for found in kept_by(model).values()]
    refit = refit_in_sequence(model, calls, ridge=1e-12)
    assert refit.in_sequence
    assert refit.layers == 2
    x = torch.cat([call.args[0] for call in calls[:7]])  # the eighth is held back
    dense = pruned = x
    for block, new, index in zip(plain.blocks, model.blocks, kept, strict=True):
        dense = block(dense)
        hidden = torch.relu(block.up(block.norm(pruned)))[..., index]
        rows = torch.cat([hidden, torch.ones_like(hidden[..., :1])], -1).flatten(0, 1)
        wanted = ((dense - pruned) / block.scale).flatten(0, 1)
        best = torch.linalg.lstsq(rows, wanted).solution.t()
        assert torch.allclose(new.down.weight[:, index], best[:, :-1], atol=1e-6)
        assert torch.allclose(new.down.bias, best[:, -1], atol=1e-6)
        pruned = pruned + block.scale * (rows @ best.t()).view_as(dense)


@pytest.mark.parametrize("order", ["fixed", "dynamic"])
@pytest.mark.parametrize("compensation", ["zero", "mean"])
def test_inputs_that_no_step_saw_come_nearer_than_with_each_layer_on_its_own(order, compensation):
    calls, others = inputs(), inputs(6, seed=2)
    one_shot = gated(Residual(blocks=6), calls, order=order, compensation=compensation)
    dense, in_sequence = dense_of(one_shot), copy.deepcopy(one_shot)
    refit_consumers(one_shot, calls)
    refit = refit_in_sequence(in_sequence, calls)
    assert refit.in_sequence
    assert refit.sequential_error < refit.one_shot_error
    assert off(in_sequence, dense, others) < 0.97 * off(one_shot, dense, others)
    masked = run(in_sequence, others[0])
    set_execution(in_sequence, "compact")
    assert error(run(in_sequence, others[0]), masked) < 1e-5


def test_where_it_is_no_better_each_layer_is_refitted_on_its_own(caplog):
    calls = inputs(8)
    one_shot = gated(OneLayer(), calls)
    in_sequence = copy.deepcopy(one_shot)
    refit_consumers(one_shot, calls)
    with caplog.at_level(logging.INFO):
        refit = refit_in_sequence(in_sequence, calls)
    assert not refit.in_sequence  # one layer aims at its own dense output either way
    assert "the latter is kept" in caplog.text
    assert refit.sequential_error == pytest.approx(refit.one_shot_error, rel=1e-3)
    assert torch.equal(in_sequence.down.weight, one_shot.down.weight)
    assert torch.equal(in_sequence.down.bias, one_shot.down.bias)


def test_of_two_inputs_none_is_held_back(caplog):
    calls = inputs(2)
    one_shot = gated(Residual(), calls)
    in_sequence = copy.deepcopy(one_shot)
    refit_consumers(one_shot, calls)
    assert not refit_in_sequence(in_sequence, calls).in_sequence
    assert "Of 2 inputs none can be held back" in caplog.text
    assert torch.equal(in_sequence.blocks[1].down.weight, one_shot.blocks[1].down.weight)
    with pytest.raises(UsageError, match="at least one input"):
        refit_in_sequence(in_sequence, [])


def test_what_a_late_block_reads_of_an_early_one_is_found_again(monkeypatch):
    calls = inputs(8)
    first = gated(Residual(blocks=7, skips=True), calls)
    second = copy.deepcopy(first)
    refit_in_sequence(first, calls)
    monkeypatch.setattr(resume, "LATEST", 100)  # nothing is ever dropped
    refit_in_sequence(second, calls)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_neither_gates_nor_modes_nor_hooks_of_the_model_change():
    calls = inputs(8)
    model = gated(Residual(), calls)
    model.blocks[0].down.bias.requires_grad_(False)
    model.train()
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    ratios = [gate.prune_ratio for gate in gates(model).values()]
    refit_in_sequence(model, calls)
    assert all(module.training for module in model.modules())
    assert not model.blocks[0].down.bias.requires_grad
    assert ratios == [gate.prune_ratio for gate in gates(model).values()]
    assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    assert not any("forward" in vars(module) for module in model.modules())


def bert():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    return BertModel(config, add_pooling_layer=False).eval()


def test_heads_that_compact_execution_narrows_have_their_full_width_in_every_run():
    random = torch.Generator().manual_seed(0)
    calls = [Example((torch.randint(1, 50, (2, 9), generator=random),)) for _ in range(8)]
    masked = gated(bert(), calls)
    compact = copy.deepcopy(masked)
    set_execution(compact, "compact")
    refits = [refit_in_sequence(model, calls) for model in (masked, compact)]
    assert refits[0] == refits[1]
    for one, other in zip(masked.parameters(), compact.parameters(), strict=True):
        assert torch.equal(one, other)


def test_padding_takes_no_part():
    model = bert()
    random = torch.Generator().manual_seed(0)
    texts = [torch.randint(1, 50, (1, 9 + i % 3), generator=random) for i in range(8)]
    plain = [Example((), {"input_ids": t, "attention_mask": torch.ones_like(t)}) for t in texts]
    padded = [
        Example((), {name: nn.functional.pad(x, (0, 4)) for name, x in call.kwargs.items()})
        for call in plain[:7]
    ] + plain[7:]  # what is held back is compared whole
    one = gated(model, plain)
    other = copy.deepcopy(one)
    refit_in_sequence(one, plain)
    refit_in_sequence(other, padded)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)
