"""A call goes on from where it was left, and gives what a whole run gives."""

import pytest
import torch
from torch import nn

from dynprune.example import Example
from dynprune.host import resume
from dynprune.host.resume import Given, Reached, Resumer


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.act, self.down = nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)
        self.runs = 0

    def forward(self, x):
        self.runs += 1
        return x + self.down(self.act(self.up(x)))


class Net(nn.Module):
    """Blocks one after the other; the last may read the first once more."""

    def __init__(self, blocks=8, skips=False):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.skips = skips

    def forward(self, x):
        seen = []
        for block in self.blocks:
            x = block(x + seen[0] if self.skips and block is self.blocks[-1] else x)
            seen.append(x)
        return x


def until(resumer, model, given, call, place, *, whole=False):
    """Run to the end of one block's last layer, and return what that gave."""
    found = []

    def end(_module, _args, output):
        found.append(output)
        raise Reached

    layer = model.blocks[place].down
    handle = layer.register_forward_hook(end)
    try:
        resumer.run(call, given, {layer, model.blocks[place].up}, whole=whole)
    finally:
        handle.remove()
    return found[0]


@torch.no_grad()
def test_every_block_runs_twice_however_many_there_are():
    model = Net().eval()
    call, resumer, given = Example((torch.randn(2, 8),)), Resumer(model), Given()
    wanted = []
    handles = [
        block.down.register_forward_hook(lambda _m, _a, output: wanted.append(output))
        for block in model.blocks
    ]
    call.run(model)
    for handle in handles:
        handle.remove()
    for block in model.blocks:
        block.runs = 0
    for place in range(8):
        assert torch.equal(until(resumer, model, given, call, place), wanted[place])
        assert given.size <= (resume.LATEST + 1) * 2 * 8 * 4
    assert [block.runs for block in model.blocks] == [2] * 7 + [1]
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@torch.no_grad()
def test_a_changed_layer_is_seen_by_the_next_run():
    model = Net().eval()
    call, resumer, given = Example((torch.randn(2, 8),)), Resumer(model), Given()
    for place in range(8):
        until(resumer, model, given, call, place)
        model.blocks[place].down.weight.mul_(0.5)
    fresh = Resumer(model)
    wanted = until(fresh, model, Given(), call, 7)
    assert torch.equal(until(resumer, model, given, call, 7), wanted)


@torch.no_grad()
def test_what_is_no_longer_kept_shows_as_no_number():
    model = Net(skips=True).eval()
    call, resumer, given = Example((torch.randn(2, 8),)), Resumer(model), Given()
    for place in range(7):
        assert bool(until(resumer, model, given, call, place).isfinite().all())
    assert bool(until(resumer, model, given, call, 7).isnan().all())
    whole = until(resumer, model, given, call, 7, whole=True)
    assert torch.equal(whole, until(Resumer(model), model, Given(), call, 7))


@torch.no_grad()
def test_a_block_that_runs_several_times_is_never_given():
    model = Net(blocks=2).eval()
    model.blocks.insert(1, model.blocks[0])
    call, resumer, given = Example((torch.randn(2, 8),)), Resumer(model), Given()
    found = until(resumer, model, given, call, 2)
    assert not given.outputs
    assert torch.equal(found, until(Resumer(model), model, Given(), call, 2))


@torch.no_grad()
def test_an_error_of_the_model_leaves_nothing_behind():
    model = Net().eval()
    resumer, given = Resumer(model), Given()
    until(resumer, model, given, Example((torch.randn(2, 8),)), 3)
    until(resumer, model, given, Example((torch.randn(2, 8),)), 5)
    with pytest.raises(RuntimeError):
        resumer.run(Example((torch.randn(2, 9),)), Given(), set())
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
