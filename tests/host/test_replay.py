"""A call that runs again from some module on gives what the whole call gives."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from dynprune.example import Example
from dynprune.host.outputs import tensors_of
from dynprune.host.replay import record
from tests.zoo import ZOO


class Block(nn.Module):
    """A linear in a module of its own, counting its runs."""

    def __init__(self, *, in_place: bool = False) -> None:
        super().__init__()
        self.linear, self.in_place, self.runs = nn.Linear(4, 4), in_place, 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        y = self.linear(x)
        return y.tanh_() if self.in_place else y.tanh()


class Chain(nn.Module):
    """Blocks one after the other; the stream may be written to in place."""

    def __init__(self, *, in_place: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
            if self.in_place:
                x += 1.0
        return x


@torch.no_grad()
@pytest.mark.parametrize("in_place", [False, True])
def test_what_ran_before_does_not_run_again_and_the_rest_does(in_place):
    model, x = Chain(in_place=in_place).eval(), torch.randn(2, 4)
    output, recording = record(model, partial(model, x))
    for _ in range(2):  # a replayed output is not spoilt by what is done to it
        for block in model.blocks:
            block.runs = 0
        with recording.until({"blocks.2.linear"}):
            torch.testing.assert_close(model(x), output)
        before = 1 if in_place else 0  # its output was written to since
        assert [block.runs for block in model.blocks] == [before, before, 1, 1]
    assert not any("forward" in vars(module) for module in model.modules())


@torch.no_grad()
def test_a_change_after_the_cut_shows_and_one_before_it_does_not():
    model, x = Chain().eval(), torch.randn(2, 4)
    output, recording = record(model, partial(model, x))
    model.blocks[0].linear.weight.zero_()
    with recording.until({"blocks.2.linear"}):
        torch.testing.assert_close(model(x), output)
    model.blocks[3].linear.weight.zero_()
    with recording.until({"blocks.2.linear"}):
        assert not torch.allclose(model(x), output)


@torch.no_grad()
def test_a_module_that_runs_twice_runs_again():
    model, x = Chain().eval(), torch.randn(2, 4)
    model.blocks[1] = model.blocks[0]
    output, recording = record(model, partial(model, x))
    model.blocks[0].runs = 0
    with recording.until({"blocks.3.linear"}):
        torch.testing.assert_close(model(x), output)
    assert model.blocks[0].runs == 2
    assert model.blocks[2].runs == 1


@torch.no_grad()
def test_a_forward_of_the_users_own_stands_again_afterwards():
    model, x = Chain().eval(), torch.randn(2, 4)
    own = model.blocks[0].forward
    vars(model.blocks[0])["forward"] = own
    _, recording = record(model, partial(model, x))
    with pytest.raises(RuntimeError), recording.until({"blocks.2"}):
        raise RuntimeError
    assert vars(model.blocks[0])["forward"] is own


@torch.no_grad()
@pytest.mark.parametrize("name", ["segformer", "swin", "bert", "t5", "convnext"])
def test_any_cut_of_a_model_gives_its_output(name):
    model, example = ZOO[name].made()
    model = model.eval()
    output, recording = record(model, partial(example.run, model))
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    for cut in (linears[0], linears[len(linears) // 2], linears[-1]):
        with recording.until({cut}):
            again: Example = example
            for a, b in zip(tensors_of(again.run(model)), tensors_of(output), strict=True):
                torch.testing.assert_close(a, b)
