"""Hooks go with the place that a module has in its model, whatever stands there."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import dynprune
from dynprune.gate import gates, is_gated
from dynprune.host.hooks import HOOKS, hand_over, hooked_within, why_irreplaceable, without_hooks


class Block(nn.Module):
    """A hidden layer, with a depthwise convolution and a batch norm that pass its neurons on."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(8, 32, 1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.norm = nn.BatchNorm2d(32)
        self.fc2 = nn.Conv2d(32, 8, 1)

    def forward(self, x):
        return x + self.fc2(torch.relu(self.norm(self.depthwise(self.fc1(x)))))


LAYERS = ("fc1", "depthwise", "norm", "fc2")


@pytest.fixture
def x():
    return torch.randn(2, 8, 5, 5)


@pytest.fixture
def recipe():
    return dynprune.load_recipe("any", ["sparsity.final=0.5"])


def gated(model, x, recipe):
    dynprune.apply(model, x, recipe, calibration=[x, x + 1])
    assert is_gated(model)
    return model


def hang(layer, seen, name):
    """Register every kind of hook that a module has; give the handles."""
    note = seen.append
    return [
        layer.register_forward_pre_hook(lambda *_: note((name, "before"))),
        layer.register_forward_pre_hook(lambda *_: note((name, "before kw")), with_kwargs=True),
        layer.register_forward_hook(lambda *_: note((name, "after"))),
        layer.register_forward_hook(lambda *_: note((name, "after kw")), with_kwargs=True),
        layer.register_forward_hook(lambda *_: note((name, "always")), always_call=True),
        layer.register_full_backward_pre_hook(lambda *_: note((name, "gradient before"))),
        layer.register_full_backward_hook(lambda *_: note((name, "gradient"))),
        layer.register_state_dict_pre_hook(lambda *_: note((name, "state before"))),
        layer._register_state_dict_hook(lambda *_: note((name, "state"))),
        layer.register_load_state_dict_pre_hook(lambda *_: note((name, "load before"))),
        layer.register_load_state_dict_post_hook(lambda *_: note((name, "load"))),
    ]


def exercise(model, x):
    """Call a model, take its gradient, and write and read its weights."""
    model(x.clone().requires_grad_()).sum().backward()
    model.load_state_dict(model.state_dict())


@pytest.mark.filterwarnings("ignore:grad and param do not obey the gradient layout contract")
def test_every_hook_of_every_replaced_layer_is_called_once_as_before(x, recipe):
    model, seen = Block().eval(), []
    for name in LAYERS:
        hang(model.get_submodule(name), seen, name)
    exercise(model, x)
    before = sorted(seen)
    assert len(before) == 11 * len(LAYERS)
    gated(model, x, recipe)
    assert all(type(model.get_submodule(name)).__module__.startswith("dynprune") for name in LAYERS)
    seen.clear()
    exercise(model, x)
    assert sorted(seen) == before
    dynprune.restore(model)
    seen.clear()
    exercise(model, x)
    assert sorted(seen) == before


def test_a_hook_sees_the_layer_in_its_place_and_what_it_gave(x, recipe):
    model, seen = Block().eval(), []
    model.fc2.register_forward_hook(lambda layer, args, out: seen.append((layer, args, out)))
    gated(model, x, recipe)
    seen.clear()
    with torch.no_grad():
        out = model(x)
    (layer, (_,), given) = seen[0]
    assert layer is model.fc2
    torch.testing.assert_close(out - x, given)


def test_a_hook_that_changes_the_output_counts(x, recipe):
    model = nn.Sequential(Block(), nn.Conv2d(8, 32, 1), nn.ReLU(), nn.Conv2d(32, 8, 1)).eval()

    def doubled(_layer, _args, out):
        return out * 2

    model[0].fc2.register_forward_hook(doubled)
    with torch.no_grad():
        expected = model(x)
        reasons = [plan.reason for plan in dynprune.inspect(model, x).plans]
        assert any("doubled that is registered on it" in (reason or "") for reason in reasons)
        dynprune.apply(model, x, recipe)
        for gate in gates(model).values():
            gate.set_prune_ratio(0.0)
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:grad and param do not obey the gradient layout contract")
def test_a_handle_removes_its_hook_wherever_it_is(x, recipe):
    model, seen = Block().eval(), []
    handles = [h for name in LAYERS for h in hang(model.get_submodule(name), seen, name)]
    gated(model, x, recipe)
    for handle in handles:
        handle.remove()
    seen.clear()
    exercise(model, x)
    dynprune.restore(model)
    exercise(model, x)
    assert seen == []
    assert not any(vars(m)[kind] for m in model.modules() for kind in HOOKS if kind[-5:] == "hooks")


def test_a_hook_that_was_added_while_gated_stays_on_the_dense_layer(x, recipe):
    model, seen = Block().eval(), []
    gated(model, x, recipe)
    handle = model.fc1.register_forward_hook(lambda *_: seen.append("after"))
    dynprune.restore(model)
    model(x)
    assert seen == ["after"]
    handle.remove()
    model(x)
    assert seen == ["after"]


def test_a_copy_of_a_gated_model_has_hooks_of_its_own(x, recipe):
    model, seen = Block().eval(), []
    model.fc1.register_forward_hook(lambda *_: seen.append("after"))
    copied = dynprune.restore(copy.deepcopy(gated(model, x, recipe)))
    seen.clear()
    copied(x)
    assert seen == ["after"]
    assert type(copied.fc1) is nn.Conv2d


def test_handing_over_twice_gives_everything_back():
    old, new = nn.Linear(2, 2), nn.Linear(2, 2)
    hang(old, [], "")
    before = {name: vars(old)[name] for name in HOOKS}
    hand_over(old, new)
    assert not any(vars(old)[name] for name in HOOKS)
    hand_over(new, old)
    assert all(vars(old)[name] is before[name] for name in HOOKS)


def test_a_hooked_part_is_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    assert hooked_within(model) is None
    model.register_forward_hook(lambda *_: None)
    assert hooked_within(model) is None
    model[1][0].register_full_backward_hook(lambda *_: None)
    assert hooked_within(model) == "1.0"
    assert hooked_within(without_hooks(copy.deepcopy(model))) is None


def offloaded(layer):
    """Hang a hook on a layer as accelerate does."""
    accelerate = pytest.importorskip("accelerate")
    accelerate.hooks.add_hook_to_module(layer, accelerate.hooks.AlignDevicesHook("cpu"))
    return layer


def patched(layer):
    layer.forward = lambda x: nn.functional.linear(x, layer.weight, layer.bias)
    return layer


def masked(layer):
    return prune.l1_unstructured(layer, "weight", amount=0.3)


def parametrized(layer):
    parametrize.register_parametrization(layer, "bias", nn.Tanh())
    return layer


def quantised(layer):
    layer.weight = nn.Parameter(layer.weight.detach().mul(9).to(torch.int8), requires_grad=False)
    return layer


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize(
    ("change", "what_to_do"),
    [
        (parametrizations.weight_norm, "remove_parametrizations"),
        (parametrizations.spectral_norm, "remove_parametrizations"),
        (parametrized, "'bias' is parametrized"),
        (weight_norm, "remove_weight_norm"),
        (spectral_norm, "remove_spectral_norm"),
        (masked, "prune.remove"),
        (patched, "forward of its own"),
        (offloaded, "remove_hook_from_module"),
        (quantised, "quantise afterwards"),
    ],
)
@pytest.mark.parametrize("place", [0, 2])
def test_a_layer_that_is_more_than_its_weight_is_left_with_what_to_do(change, what_to_do, place):
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    if change is not quantised:
        change(model[place])
        (plan,) = dynprune.inspect(model, torch.randn(3, 8)).plans
        assert plan.mode == "refused"
        assert what_to_do in plan.reason
        assert plan.reason.startswith(f"{place} ")
    else:
        assert what_to_do in why_irreplaceable(change(model[place]))


def test_a_plain_layer_may_be_replaced():
    assert why_irreplaceable(nn.Linear(2, 2)) is None
    assert why_irreplaceable(nn.BatchNorm1d(2)) is None


class Attention(nn.Module):
    """Torch's own attention, which a rewrite replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


def test_hooks_of_a_rewritten_module_are_called_with_its_own_arguments(recipe):
    model, seen = Attention().eval(), []
    kept = model.attention
    kept.register_forward_hook(lambda _m, args, out: seen.append((len(args), len(out))))
    kept.register_forward_pre_hook(lambda *_: seen.append("before"))
    gated(model, torch.randn(2, 5, 16), dynprune.load_recipe("any", ["apply.gate.align=1"]))
    assert model.attention is not kept
    seen.clear()
    model(torch.randn(2, 5, 16))
    assert seen == ["before", (3, 2)]
    dynprune.restore(model)
    assert model.attention is kept
    seen.clear()
    model(torch.randn(2, 5, 16))
    assert seen == ["before", (3, 2)]


def test_what_a_user_put_on_a_layer_is_read_on_what_replaces_it(x, recipe):
    model = Block().eval()
    tags = {name: {"rate": 0.1} for name in LAYERS}
    for name in LAYERS:
        model.get_submodule(name).tag = tags[name]
    gated(model, x, recipe)
    assert all(model.get_submodule(name).tag is tags[name] for name in LAYERS)
