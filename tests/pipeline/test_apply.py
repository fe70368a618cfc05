"""From a recipe to a gated model: what its keys ask for is what is done."""

import copy
import random

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from dynprune.errors import GateError, NoMatchError, UsageError
from dynprune.example import Example
from dynprune.gate import gates, is_gated
from dynprune.models import LoadedModel, ModelSource, provenance_of, source_of
from dynprune.models.storage import load, save
from dynprune.pipeline import apply_recipe, inspect_model, restore
from dynprune.recipe import load_recipe
from tests.rewrite.heads import image, segformer
from tests.state_of import differences, state_of

CALLS = [Example((image(batch=1, seed=seed),)) for seed in range(6)]


def applied(model, *overrides):
    loaded = LoadedModel(copy.deepcopy(model), CALLS[0], source_of(model), (), "segformer")
    return apply_recipe(loaded, load_recipe("any", overrides), calibration=iter(CALLS))


def distance(one, other):
    with torch.no_grad():
        pairs = [(call.run(one).logits, call.run(other).logits) for call in CALLS]
    return float(torch.stack([(a - b).square().mean() for a, b in pairs]).mean())


def test_a_recipe_that_asks_for_a_refit_gets_nearer_to_the_dense_model(tmp_path):
    dense = segformer().eval()
    settings = ("sparsity.final=0.5", "apply.gate.align=1", "apply.gate.order=fixed")
    plain = applied(dense, *settings)
    refitted = applied(dense, *settings, "apply.calibration.refit=true")
    assert {g.kept for g in gates(plain).values()} == {g.kept for g in gates(refitted).values()}
    assert distance(refitted, dense) < 0.8 * distance(plain, dense)
    save(refitted, tmp_path / "gated")
    assert distance(load(tmp_path / "gated"), refitted) == 0.0


@pytest.mark.parametrize("order", ["fixed", "dynamic"])
def test_refitted_in_sequence_a_model_is_nearer_to_the_dense_one_and_restored_to_its_bits(order):
    dense = segformer().eval()
    settings = ("sparsity.final=0.5", "apply.gate.align=1", f"apply.gate.order={order}")
    calls = [Example((image(batch=2, seed=seed),)) for seed in range(12)]

    def refitted(refit):
        loaded = LoadedModel(copy.deepcopy(dense), CALLS[0], source_of(dense), (), "segformer")
        recipe = load_recipe("any", [*settings, f"apply.calibration.refit={refit}"])
        return apply_recipe(loaded, recipe, calibration=calls)

    one_shot, in_sequence = refitted("true"), refitted("sequential")
    assert distance(in_sequence, dense) <= distance(one_shot, dense)  # it is kept where it is less
    assert provenance_of(in_sequence).refitted >= provenance_of(one_shot).refitted > 0
    restored = restore(in_sequence).state_dict()
    assert all(torch.equal(restored[name], x) for name, x in dense.state_dict().items())


FIXED = ("sparsity.final=0.5", "apply.gate.align=1", "apply.gate.choose=fixed")


def test_fixing_ends_in_a_plain_model_that_is_nearer_to_the_dense_one_after_a_refit():
    dense = segformer().eval()
    plain = applied(dense, *FIXED)
    refitted = applied(dense, *FIXED, "apply.calibration.refit=true")
    for model in (plain, refitted):
        assert not is_gated(model)
        kinds = [{type(m) for m in part.segformer.modules()} for part in (model, dense)]
        assert kinds[0] == kinds[1]
    assert distance(refitted, dense) < 0.8 * distance(plain, dense)


def test_fixing_computes_what_gates_of_a_fixed_order_compute():
    dense = segformer().eval()
    settings = ("sparsity.final=0.5", "apply.gate.align=1", "apply.calibration.refit=true")
    gated = applied(dense, *settings, "apply.gate.order=fixed")
    fixed = applied(dense, *settings, "apply.gate.choose=fixed")
    # What pruning moves here is itself near float32's rounding of the logits.
    assert distance(fixed, gated) < 1e-4 * distance(fixed, dense)


def test_where_fixing_fails_the_model_has_its_own_weights_again(monkeypatch):
    def fail(*_arguments):
        raise GateError("no")

    monkeypatch.setattr("dynprune.pipeline.apply.put_forms", fail)
    model = segformer().eval()
    before = copy.deepcopy(model)
    loaded = LoadedModel(model, CALLS[0], source_of(model), (), "segformer")
    recipe = load_recipe("any", [*FIXED, "apply.calibration.refit=true"])
    with pytest.raises(GateError):
        apply_recipe(loaded, recipe, calibration=CALLS)
    assert str(model) == str(before)
    wanted = before.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items())


def test_a_fixed_model_is_not_restored():
    fixed = applied(segformer().eval(), *FIXED)
    before = str(fixed)
    with pytest.raises(UsageError, match="load the dense model that it was made from"):
        restore(fixed)
    assert str(fixed) == before


class Everything(nn.Module):
    """Whatever `apply` changes is here: convolutions, packed attention, a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head, self.calls = nn.Linear(16, 4), 0
        self.register_buffer("map", torch.randn(1, 16, 4, 4))

    def forward(self, x):
        self.calls += 1
        x = self.depthwise(self.patch(x)) + self.map
        return self.head(self.layer(x.flatten(2).transpose(1, 2)))


EVERY_STEP = [
    "rewrite=[unpack-attention,channels-last]",
    "apply.gate.align=1",
    "apply.drop_dead=true",
    "apply.calibration.refit=sequential",
    "sparsity.distribution=sensitivity",
    "sparsity.final=0.5",
]


def everything():
    """Make a model that its user has laid out, frozen in part, hooked, and trains."""
    torch.manual_seed(1)
    model = Everything().to(memory_format=torch.channels_last)
    model.depthwise.weight.data = model.depthwise.weight.data.contiguous()
    model.layer.linear2.weight.data = model.layer.linear2.weight.data.t().contiguous().t()
    model.layer.dropout.eval()
    model.head.weight.requires_grad_(False)
    model.layer.self_attn.in_proj_bias.requires_grad_(False)
    model.layer.linear1.register_forward_hook(lambda *_: None)
    model.layer.self_attn.register_forward_pre_hook(lambda *_: None)
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    return model


def loaded_of(model):
    example = Example((torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2)),))
    return LoadedModel(model, example, ModelSource("factory", factory="m:f"), (), "everything")


def gated_with_all(model, **more):
    loaded = loaded_of(model)
    calls = [loaded.example.batched(2, seed=seed) for seed in range(5)]
    return apply_recipe(loaded, load_recipe("any", EVERY_STEP), calibration=calls, **more)


class Interrupt(TorchFunctionMode):
    """Raise at one of the functions of torch that are called while the mode is on."""

    def __init__(self, at: int = 0) -> None:
        super().__init__()
        self.at, self.called = at, 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.called += 1
        if self.called == self.at:
            raise KeyboardInterrupt
        return function(*args, **(kwargs or {}))


def test_wherever_it_is_interrupted_the_model_is_bit_for_bit_as_it_was():
    count = Interrupt()
    with count:
        gated_with_all(everything())
    model, drawn = everything(), torch.get_rng_state()
    before = state_of(model)
    for at in random.Random(0).sample(range(1, count.called), 12):
        with pytest.raises(KeyboardInterrupt), Interrupt(at):
            gated_with_all(model)
        assert not differences(before, state_of(model)), f"interrupted at {at}"
        assert torch.equal(torch.get_rng_state(), drawn)


def test_untrained_it_is_restored_bit_for_bit_after_every_step_of_a_recipe():
    model = everything()
    before = state_of(model)
    gated_with_all(model)
    assert {type(m).__module__.partition(".")[0] for m in model.modules()} > {"dynprune"}
    restore(model)
    _modes_back(model)
    assert not [found for found in differences(before, state_of(model)) if "_dynprune" not in found]


def _modes_back(model):
    """Put the modes back that a user chose; `apply` leaves a model in eval mode."""
    model.train()
    model.layer.dropout.eval()


def test_a_model_is_inspected_with_every_rewrite_without_a_trace():
    model, drawn = everything(), torch.get_rng_state()
    before = state_of(model)
    inspect_model(loaded_of(model), load_recipe("any", EVERY_STEP))
    inspect_model(loaded_of(model))
    assert not differences(before, state_of(model))
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_model_that_cannot_be_gated_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)).to(
        memory_format=torch.channels_last
    )
    before = state_of(model)
    with pytest.raises(NoMatchError):
        apply_recipe(loaded_of(model), load_recipe("any", ["rewrite=[channels-last]"]))
    assert not differences(before, state_of(model))


def test_a_rewrite_that_stood_before_is_not_taken_back():
    """Inspecting a model undoes what inspecting did, not what its user did."""
    dense = segformer().eval()
    folded = applied(dense, "rewrite=[fold-decoder,channels-last]")
    assert type(restore(copy.deepcopy(folded)).decode_head) is type(dense.decode_head)
    for gate in (True, False):
        model = copy.deepcopy(folded)
        if not gate:
            from dynprune.gate import remove

            remove(model)
        before = state_of(model)
        loaded = LoadedModel(model, CALLS[0], source_of(dense), (), "segformer")
        inspect_model(loaded, load_recipe("any", ["rewrite=[fold-decoder,channels-last]"]))
        assert not differences(before, state_of(model))


def test_what_was_trained_since_stays_in_the_dense_model():
    model = everything()
    before = state_of(model)
    gated_with_all(model)
    with torch.no_grad():
        for parameter in model.layer.parameters():
            parameter.mul_(1.5)
        dense = model.eval()(loaded_of(model).example.args[0])
    restore(model)
    assert type(model.layer.linear1) is nn.Linear
    assert model.layer.linear1.weight.shape == (32, 16)
    assert {name for name, found in before.items()} == {name for name, _ in model.named_modules()}
    assert dense.shape == model(loaded_of(model).example.args[0]).shape


def test_files_that_hold_no_dense_weights_say_so_when_they_are_restored(tmp_path):
    dense = segformer().eval()
    plain = applied(dense, "sparsity.final=0.5")
    save(plain, tmp_path / "plain")
    again = restore(load(tmp_path / "plain"))
    assert all(torch.equal(v, dense.state_dict()[k]) for k, v in again.state_dict().items())

    save(applied(dense, "apply.calibration.refit=true"), tmp_path / "refitted")
    student = load(tmp_path / "refitted")
    with pytest.raises(UsageError, match=r"layers of this model were refitted.*keep_refitted=True"):
        restore(student)
    assert gates(student)  # it is as it was
    assert not gates(restore(student, keep_refitted=True))


def test_neurons_that_went_for_good_do_not_come_back_from_files(tmp_path):
    model = segformer().eval()
    with torch.no_grad():
        for block in model.segformer.stages[0].blocks:
            block.mlp.fc1.weight[:8] = 0.0
    narrow = applied(model, "apply.drop_dead=true", "apply.gate.align=1")
    records = provenance_of(narrow).rewrites
    assert any(record.details.get("dead") for record in records)
    save(narrow, tmp_path / "narrow")
    with pytest.raises(UsageError, match=r"removed permanently.*Load the dense model"):
        restore(load(tmp_path / "narrow"))
    restore(narrow)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in narrow.state_dict().items())
