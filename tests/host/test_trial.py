"""A model that was run on trial is the model that it was, whatever its own code does to itself."""

import itertools
import random
from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import pytest
import torch
from torch import nn

import dynprune
from dynprune.host.trial import Snapshot, trial
from tests.state_of import differences, state_of


class Settings:
    """An object of somebody's own that a model keeps."""

    def __init__(self) -> None:
        self.window, self.table = 7, {"sizes": [1, 2]}


class Slotted:
    """The same with slots."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


def _counts(m, x):
    m.calls += 1
    m.ratio, m.name, m.pair = m.ratio * 2, m.name + "!", (m.pair[0], m.calls)


def _fills_containers(m, x):
    m.seen.append(x.shape)
    m.nested["a"][0].append(1)
    m.by_size[tuple(x.shape)] += 1
    m.ordered.move_to_end("first")
    m.tags.add("new")
    m.last.append(m.calls)
    m.defaults[3].append(1)


def _keeps_tensors(m, x):
    m.cache = x.detach() * 2
    m.scale += 1
    m.held[0].mul_(3)
    m.array += 1


def _moves_buffers(m, x):
    m.mean.mul_(0.5).add_(x.mean().detach())
    m.hidden.data += 1
    m.replaced = m.replaced + 1


def _registers_a_buffer(m, x):
    m.register_buffer("late", torch.ones(2))


def _adds_and_deletes(m, x):
    m.new = {"a": 1}
    if hasattr(m, "old"):
        del m.old


def _changes_objects(m, x):
    m.settings.window = min(m.settings.window, x.shape[-1])
    m.settings.table["sizes"].append(3)
    m.slotted.count += 1
    m.plain.tail = 3


def _draws(m, x):
    torch.rand(1), random.random(), np.random.rand()
    torch.rand(1, generator=m.generator)
    m.python.random()
    m.numpy.random()


def _turns_flags(m, x):
    m.norm.train()
    m.norm(torch.randn(8, 4))
    m.fc1.weight.requires_grad_(False)
    m.fc2.weight.grad = torch.ones_like(m.fc2.weight)


def _lays_out_anew(m, x):
    m.fc1.weight.data = m.fc1.weight.data.t().contiguous().t()


def _normalises(m, x):
    m.embedding(torch.arange(4))


def _hooks_itself(m, x):
    m.fc1.register_forward_hook(lambda *_: None, with_kwargs=False)
    if m.own is not None:
        m.own.remove()
        m.own = None


def _uses_hidden_modules(m, x):
    m.aside[0](torch.randn(6, 4))
    m.aside[0].calls = 5


WAYS = [
    _counts, _fills_containers, _keeps_tensors, _moves_buffers, _registers_a_buffer,
    _adds_and_deletes, _changes_objects, _draws, _turns_flags, _lays_out_anew, _normalises,
    _hooks_itself, _uses_hidden_modules,
]  # fmt: skip
TRACED = [way for way in WAYS if way not in (_registers_a_buffer, _lays_out_anew)]
"""Those that torch can trace."""


class Restless(nn.Module):
    """A hidden layer around which a model remembers its calls in one of many ways."""

    def __init__(self, *ways) -> None:
        super().__init__()
        self.ways = ways
        self.fc1, self.fc2 = nn.Linear(4, 32), nn.Linear(32, 4)
        self.norm, self.embedding = nn.BatchNorm1d(4), nn.Embedding(4, 3, max_norm=0.1)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("hidden", torch.zeros(2), persistent=False)
        self.calls, self.ratio, self.name, self.pair, self.old = 0, 0.5, "m", (1, 2), "there"
        self.seen, self.nested, self.tags, self.last = [], {"a": ([],)}, {"x"}, deque([1], 3)
        self.by_size, self.defaults = Counter(), defaultdict(list)
        self.ordered = OrderedDict(first=1, second=2)
        self.cache, self.scale, self.held = None, torch.zeros(3), [torch.ones(2)]
        self.array, self.settings, self.slotted = np.zeros(3), Settings(), Slotted()
        self.plain = Settings()
        self.generator, self.python = torch.Generator(), random.Random(0)
        self.numpy = np.random.default_rng(0)
        self.aside = [nn.BatchNorm1d(4)]
        self.own = self.fc2.register_forward_hook(lambda *_: None)

    def forward(self, x):
        for way in self.ways:
            way(self, x)
        return x + self.fc2(torch.relu(self.fc1(x)))


def chance(model):
    return (
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        model.python.getstate(),
        str(model.numpy.bit_generator.state),
        model.generator.get_state().tolist(),
        model.slotted.count,
        model.aside[0].running_mean.tolist(),
    )


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_what_a_forward_pass_changes_is_put_back(way):
    model = Restless(way)
    before, drawn = state_of(model), chance(model)
    with trial(model) as kept:
        model(torch.randn(2, 4))
        assert differences(before, state_of(model)) or chance(model) != drawn
        kept.put_back()
        assert not differences(before, state_of(model))
        model(torch.randn(2, 4))
    assert not differences(before, state_of(model))
    assert chance(model) == drawn


def test_it_is_put_back_where_the_model_fails():
    model = Restless(*WAYS, lambda *_: 1 / 0)
    before, drawn = state_of(model), chance(model)
    with pytest.raises(ZeroDivisionError), trial(model):
        model(torch.randn(2, 4))
    assert not differences(before, state_of(model))
    assert chance(model) == drawn


def test_weights_are_not_copied():
    model = nn.Linear(1 << 10, 1 << 10)
    with trial(model), torch.no_grad():
        model.weight.zero_()
    assert not model.weight.any()


def test_layers_that_were_replaced_meanwhile_stay():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    new = nn.Linear(2, 2)
    with trial(model):
        model[0] = new
    assert model[0] is new


def test_a_model_that_holds_itself_is_no_endless_walk():
    model = nn.Linear(2, 2)
    model.itself = [model, {"again": [model]}]
    model.itself.append(model.itself)
    with trial(model):
        model.itself.append(1)
    assert len(model.itself) == 3


def test_a_snapshot_may_be_put_back_again_and_again():
    model = Restless(*WAYS).eval()
    kept, before = Snapshot(model), state_of(model)
    for _ in range(3):
        model(torch.randn(2, 4))
        kept.put_back()
        assert not differences(before, state_of(model))


@pytest.mark.parametrize("way", TRACED, ids=lambda way: way.__name__)
def test_a_model_is_inspected_gated_and_restored_without_a_trace(way):
    model, x = Restless(way).eval(), torch.randn(2, 4)
    before, drawn = state_of(model), chance(model)
    inspection = dynprune.inspect(model, x)
    assert not differences(before, state_of(model))
    assert chance(model) == drawn
    if all(plan.mode == "refused" for plan in inspection.plans):
        pytest.skip(f"not gated: {inspection.plans[0].reason}")
    dynprune.apply(model, x, "any", calibration=[x, x + 1])
    assert chance(model) == drawn
    dynprune.restore(model)
    found = [d for d in differences(before, state_of(model)) if "_dynprune" not in d]
    assert not found


def test_every_run_of_a_trial_starts_from_the_models_own_state():
    """A window that shrinks on small pictures must not be small for the next one."""

    class Shrinks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.window, self.fc1, self.fc2 = 16, nn.Conv2d(3, 32, 1), nn.Conv2d(32, 3, 1)

        def forward(self, x):
            if x.shape[-1] < 160:
                self.window = 4
            elif self.window < 16:
                raise RuntimeError("it was left small")
            return self.fc2(torch.relu(self.fc1(x)))

    model, x = Shrinks().eval(), torch.randn(1, 3, 160, 160)
    assert [plan.mode for plan in dynprune.inspect(model, x).plans] == ["compact"]
    dynprune.apply(model, x, "any", calibration=itertools.repeat(dynprune.Example((x,)), 2))
    assert model.window == 16
