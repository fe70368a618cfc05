"""Packed attention is unpacked where it is proven, everywhere it stands, and packed again."""

import copy

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import dynprune
from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.gate import gates
from dynprune.host.modes import at_inference
from dynprune.rewrite import Rewrite, UnpackedAttention, reapply, rewrite, undo
from dynprune.rewrite.attention import unpack as module_under_test
from tests.gate.zoo_laws import error, run
from tests.zoo import ZOO

UNPACK = ["unpack-attention"]
ROUNDING = 1e-5  # float32 sums in another order


class Host(nn.Module):
    """One attention between two linears, called as the options say."""

    def __init__(self, attention: nn.Module, calls: int = 1, **options: object) -> None:
        super().__init__()
        self.stem, self.attention, self.head = nn.Linear(8, 8), attention, nn.Linear(8, 4)
        self.calls, self.options = calls, options

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(self.calls):
            x = x + self.attention(x, x, x, **self.options)[0]
        return self.head(x)


def host(**options) -> tuple[nn.Module, Example]:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)
    return Host(attention).eval(), Example((torch.randn(2, 5, 8),))


def encoder() -> tuple[nn.Module, Example]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.TransformerEncoder(layer, 2).eval(), Example((torch.randn(2, 5, 16),))


def test_the_function_stays_and_the_way_back_gives_everything_back():
    model, example = encoder()
    dense, parameters = run(model, example), dict(model.named_parameters())
    bits = {name: value.clone() for name, value in model.state_dict().items()}
    modules = list(model.modules())
    records = rewrite(model, example, UNPACK)
    assert [(r.module, r.reason) for r in records] == [
        ("layers.0.self_attn", None),
        ("layers.1.self_attn", None),
    ]
    assert all(record.max_error < ROUNDING for record in records)
    assert error(run(model, example), dense) < ROUNDING
    assert all(isinstance(layer.self_attn, UnpackedAttention) for layer in model.layers)
    with torch.no_grad():  # where torch would run its fused kernel
        assert error([model(*example.args)], dense) < ROUNDING
    undo(model)
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert all(value is parameters[name] for name, value in model.named_parameters())
    assert model.state_dict().keys() == bits.keys()
    assert all(torch.equal(value, bits[name]) for name, value in model.state_dict().items())
    assert model.use_nested_tensor
    assert all(layer.activation_relu_or_gelu == 1 for layer in model.layers)


def test_training_goes_on_through_the_way_back():
    model, example = encoder()
    rewrite(model, example, UNPACK)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    example.run(model).square().sum().backward()
    optimizer.step()
    trained = run(model, example)
    undo(model)
    assert error(run(model, example), trained) < ROUNDING


def test_a_record_rebuilds_the_form_and_a_foreign_one_is_refused():
    model, example = encoder()
    other = copy.deepcopy(model)
    records = [Rewrite.from_json(r.to_json()) for r in rewrite(model, example, UNPACK)]
    reapply(other, records)
    assert list(other.state_dict()) == list(model.state_dict())
    assert error(run(other, example), run(model, example)) == 0.0
    for wrong in (nn.Linear(3, 2), host(kdim=6, vdim=6)[0]):
        with pytest.raises(UsageError, match="the record of rewrite unpack-attention"):
            reapply(wrong, [Rewrite("unpack-attention", "attention", {}, 0.0)])


class Own(nn.MultiheadAttention):
    """A user's own variant."""


def shared() -> nn.Module:
    model = host()[0]
    model.other = nn.MultiheadAttention(8, 2)
    model.other.in_proj_weight = model.attention.in_proj_weight
    return model


def hooked() -> nn.Module:
    model = host()[0]
    model.attention.out_proj.register_forward_hook(lambda *_: None)
    return model


def unused() -> nn.Module:
    model = host()[0]
    model.calls = 0
    return model


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: Host(Own(8, 2, batch_first=True)), "its class Own is not torch's own"),
        (lambda: host(kdim=8, vdim=8, add_bias_kv=True)[0], "keys and values of its own"),
        (lambda: host(add_zero_attn=True)[0], "keys and values of its own"),
        (shared, "its weight is shared with another module"),
        (hooked, "hooks are registered on its out_proj"),
        (unused, "it does not run on the example"),
    ],
)
def test_what_cannot_be_unpacked_is_left_with_its_reason(build, reason):
    model, example = build().eval(), Example((torch.randn(2, 5, 8),))
    before = model.attention
    assert reason in rewrite(model, example, UNPACK)[0].reason
    assert model.attention is before
    assert before.in_proj_weight.numel() == 3 * 8 * 8


def test_another_width_of_keys_is_refused():
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x[..., :6], x[..., :6])[0]

    (record,) = rewrite(Cross().eval(), Example((torch.randn(2, 5, 8),)), UNPACK)
    assert "kdim, vdim" in record.reason


def test_models_without_one_or_that_are_one_say_so():
    x = torch.randn(2, 5, 8)
    (record,) = rewrite(nn.Linear(8, 8), Example((x,)), UNPACK)
    assert record.reason == "the model has no nn.MultiheadAttention"
    (record,) = rewrite(nn.MultiheadAttention(8, 2), Example((x, x, x)), UNPACK)
    assert "the whole model" in record.reason


def test_a_model_that_fails_on_its_example_is_left_alone():
    model, _ = host()
    (record,) = rewrite(model, Example((torch.randn(2, 5, 7),)), UNPACK)
    assert "the model fails on the example" in record.reason
    assert type(model.attention) is nn.MultiheadAttention


@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj"])
def test_the_proof_sees_one_wrong_weight(name, monkeypatch):
    class Wrong(UnpackedAttention):
        def __init__(self, source: nn.MultiheadAttention) -> None:
            super().__init__(source)
            getattr(self, name).weight.data[0] += 0.01

    monkeypatch.setattr(module_under_test, "UnpackedAttention", Wrong)
    model, example = host()
    (record,) = rewrite(model, example, UNPACK)
    assert "the unpacked form differs by" in record.reason
    assert type(model.attention) is nn.MultiheadAttention


def test_a_model_that_needs_the_packed_parameter_gets_it_back():
    class Reader(Host):
        def forward(self, x: Tensor) -> Tensor:
            assert isinstance(self.attention.in_proj_weight, nn.Parameter)
            return super().forward(x)

    torch.manual_seed(0)
    model = Reader(nn.MultiheadAttention(8, 2, batch_first=True)).eval()
    (record,) = rewrite(model, Example((torch.randn(2, 5, 8),)), UNPACK)
    assert record.reason.startswith("the model fails with it: AssertionError")
    assert type(model.attention) is nn.MultiheadAttention


def test_an_attention_at_two_places_is_replaced_at_both():
    model, example = host()
    model.again = model.attention
    dense = run(model, example)
    (record,) = rewrite(model, example, UNPACK)
    assert record.reason is None
    assert model.again is model.attention
    assert error(run(model, example), dense) < ROUNDING


def test_bfloat16_is_unpacked_too():
    model, example = encoder()
    half = Example(tuple(x.bfloat16() for x in example.args))
    records = rewrite(model.bfloat16(), half, UNPACK)
    assert not any(record.reason for record in records)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("recipe", [None, "any"])
@pytest.mark.parametrize("name", ["torch_encoder", "mmseg_segformer"])
def test_inspect_opens_packed_attention_and_changes_nothing(name, recipe):
    torch.manual_seed(0)
    model, example = ZOO[name].build().eval(), ZOO[name].example()
    before = dict(model.named_parameters())
    found = dynprune.inspect(model, example, recipe)
    (note,), plans = found.notes, found.plans
    assert note.startswith("rewrite unpack-attention gives ")
    assert {(plan.group.kind, plan.mode) for plan in plans} == {
        (kind, "compact") for kind in ("qk", "v", "ffn")
    }
    assert all(value is before[key] for key, value in model.named_parameters())
    assert any(isinstance(m, nn.MultiheadAttention) for m in model.modules())


def test_a_gated_encoder_is_saved_loaded_and_restored(tmp_path):
    dense, example = encoder()
    model = copy.deepcopy(dense)
    recipe = dynprune.load_recipe("any", ["apply.gate.align=1", "sparsity.final=0.5"])
    dynprune.apply(model, example, recipe, calibration=[example])
    assert len(gates(model)) == 6
    call = example.batched(3, seed=5)
    with torch.no_grad():
        pruned = model(*call.args)
    dynprune.save(model, tmp_path / "student")
    loaded = dynprune.load(tmp_path / "student", factory=lambda: encoder()[0])
    with torch.no_grad():
        assert torch.equal(loaded(*call.args), pruned)
    dynprune.restore(loaded)
    bits = dense.state_dict()
    assert loaded.state_dict().keys() == bits.keys()
    assert all(torch.equal(value, bits[key]) for key, value in loaded.state_dict().items())
    assert type(loaded.layers[0].self_attn) is nn.MultiheadAttention


def test_a_head_that_pools_by_a_learnt_query_keeps_its_queries():
    """A query that no input moves has nothing to choose by; its values do."""
    config = hf.SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    torch.manual_seed(0)
    model = hf.SiglipVisionModel(config).eval()
    plans = dynprune.inspect(model, {"pixel_values": torch.randn(1, 3, 32, 32)}).plans
    modes = {plan.group.name.rpartition("head.attention.")[2]: plan for plan in plans}
    assert modes["v_proj"].mode == "compact"
    assert modes["q_proj"].reason == "its input does not depend on the model's input"


def test_masked_training_of_the_unpacked_form_reaches_every_weight():
    model, example = encoder()
    recipe = dynprune.load_recipe("any", ["apply.gate.align=1"])
    dynprune.apply(model, example, recipe, calibration=[example])
    model.train()
    example.run(model).square().sum().backward()
    for layer in model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            assert bool((getattr(layer.self_attn, name).weight.grad != 0).any())


def test_modes_of_torch_are_as_before_the_proof():
    model, example = encoder()
    model.train()
    rewrite(model, example, UNPACK)
    assert all(module.training for module in model.modules())
    with at_inference(model):
        assert torch.backends.mha.get_fastpath_enabled()  # it is the process's
