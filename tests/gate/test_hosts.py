"""Gates live in whatever host they are put into: any type, any outputs, any call, any compiler."""

import copy
from dataclasses import dataclass

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import dynprune
from dynprune.example import Example
from dynprune.gate import gates, is_gated, recording, remove, set_execution
from dynprune.host.modes import at_inference
from tests.gate.zoo_laws import (
    BFLOAT16,
    ROUNDING,
    difference,
    error,
    forced,
    gate_all,
    gated_animal,
    run,
    stir,
)
from tests.zoo import ZOO, enliven


@pytest.mark.parametrize("name", ["vit", "segformer"])
def test_a_model_in_bfloat16_is_gated_and_stays_in_bfloat16(name):
    model, example = ZOO[name].made()
    dense = run(model, example)
    half = Example((), {key: x.bfloat16() for key, x in example.kwargs.items()})
    model.bfloat16()
    record = gate_all(model, half)
    assert {plan.mode for plan in record.plans} == {"compact"}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert difference(model, half.batched(3, seed=5)) < BFLOAT16
    remove(model)
    assert error(run(model, half), dense) < BFLOAT16


def test_tied_weights_stay_tied_and_are_saved_once(tmp_path):
    torch.manual_seed(0)
    config = hf.BertConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=64,
        tie_word_embeddings=True,
    )
    model = hf.BertForMaskedLM(config).eval()
    call = {"input_ids": torch.randint(1, 60, (3, 9))}
    recipe = dynprune.load_recipe("any", ["apply.gate.align=4", "sparsity.final=0.5"])
    dynprune.apply(model, call, recipe, calibration=[call])

    def is_tied(m):
        return m.get_input_embeddings().weight is m.get_output_embeddings().weight

    assert is_gated(model)
    assert is_tied(model)
    pruned = run(model, Example((), call))
    dynprune.save(model, tmp_path / "student")
    loaded = dynprune.load(tmp_path / "student")
    assert is_tied(loaded)
    assert error(run(loaded, Example((), call)), pruned) == 0.0
    assert is_tied(dynprune.restore(loaded))


def test_a_weight_that_two_layers_share_is_refused():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 16), nn.Linear(8, 16)
            self.second.weight = self.first.weight
            self.out, self.other = nn.Linear(16, 8), nn.Linear(16, 8)

        def forward(self, x):
            return self.out(self.first(x).relu()) + self.other(self.second(x + 1).relu())

    torch.manual_seed(0)
    model, call = Shared().eval(), Example((torch.randn(2, 5, 8),))
    dense = run(model, call)
    record = gate_all(model, call)
    assert {plan.mode for plan in record.plans} == {"refused"}
    assert error(run(model, call), dense) == 0.0


@dataclass
class Found:
    """What a model of several heads returns."""

    boxes: Tensor
    scores: list[Tensor]


class TwoHeads(nn.Module):
    """A hidden layer that two heads read; returns them in the form asked for."""

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.fc1, self.boxes, self.scores = nn.Linear(8, 32), nn.Linear(32, 4), nn.Linear(32, 3)

    def forward(self, x, *, scale=None, unused=None):
        hidden = nn.functional.gelu(self.fc1(x))
        boxes, scores = self.boxes(hidden), self.scores(hidden)
        if scale is not None:
            boxes = boxes * scale[:, None, None]
        if self.form == "tuple":
            return boxes, (scores, x)
        if self.form == "dict":
            return {"boxes": boxes, "scores": [scores], "none": None}
        return Found(boxes, [scores])


def heads(output):
    """Return what both heads returned, in whichever form."""
    if isinstance(output, tuple):
        return [output[0], output[1][0]]
    fields = output if isinstance(output, dict) else vars(output)
    return [fields["boxes"], fields["scores"][0]]


@pytest.mark.parametrize("form", ["tuple", "dict", "dataclass"])
def test_a_hidden_layer_of_several_outputs_is_gated_as_one(form):
    torch.manual_seed(0)
    model, call = TwoHeads(form).eval(), Example((torch.randn(3, 5, 8),))
    (plan,) = gate_all(model, call).plans
    assert (plan.mode, plan.group.neurons) == ("compact", 32)
    assert [c.module for c in plan.group.consumers] == ["boxes", "scores"]
    assert type(call.run(model)) is type(call.run(TwoHeads(form)))
    with forced(model, 3), at_inference(model):
        set_execution(model, "masked")
        masked = heads(call.run(model))
        set_execution(model, "compact")
        assert error(heads(call.run(model)), masked) < ROUNDING


def test_keywords_that_are_none_or_no_tensor_of_the_batch_are_passed_on():
    torch.manual_seed(0)
    model = TwoHeads("tuple").eval()
    call = {"x": torch.randn(3, 5, 8), "scale": torch.rand(3) + 1, "unused": None}
    (plan,) = dynprune.inspect(model, call).plans
    assert plan.mode == "compact"
    recipe = dynprune.load_recipe("any", ["apply.gate.align=1", "sparsity.final=0.5"])
    dynprune.apply(model, call, recipe, calibration=[call])
    with recording() as seen:
        assert difference(model, Example((), call)) < ROUNDING
    assert len(next(iter(seen.values()))[0].selection.keep) == 3


def test_a_transformers_model_takes_flags_among_its_keywords():
    model, example = ZOO["bert"].made()
    call = Example((), {**example.kwargs, "output_hidden_states": True})
    gate_all(model, call)
    wide = Example((), {**example.batched(3, seed=5).kwargs, "output_hidden_states": True})
    assert difference(model, wide) < ROUNDING
    assert len(wide.run(model).hidden_states) == 3


@pytest.mark.parametrize("execution", ["compact", "masked"])
@pytest.mark.parametrize("name", ["vit", "segformer"])
def test_a_gated_model_compiles_whole_and_computes_the_same(name, execution):
    model, example, *_ = gated_animal(name)
    set_execution(model, execution)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for instances in (3, 2):
        call = example.batched(instances, seed=instances)
        assert error(run(compiled, call), run(model, call)) < ROUNDING


def test_a_copy_of_a_gated_model_has_gates_of_its_own():
    model, example, *_ = gated_animal("vit")
    other = copy.deepcopy(model)
    call = example.batched(3, seed=5)
    before = run(model, call)
    for gate in gates(other).values():
        gate.set_prune_ratio(0.0)
    assert error(run(other, call), before) > 1e-3
    assert error(run(model, call), before) == 0.0


class BatchNormed(nn.Module):
    """A hidden layer whose channels a batch norm and a depthwise convolution pass on."""

    def __init__(self):
        super().__init__()
        self.up, self.norm = nn.Conv2d(4, 16, 1), nn.BatchNorm2d(16)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.down = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        return self.down(nn.functional.gelu(self.depth(self.norm(self.up(x)))))


@pytest.mark.parametrize("execution", ["compact", "masked"])
@pytest.mark.parametrize("name", ["torch_encoder", "convnext", "mlp_mixer"])
def test_an_empty_batch_gives_an_empty_result(name, execution):
    model, example, *_ = gated_animal(name)
    set_execution(model, execution)
    one = run(model, example)
    args = tuple(x[:0] for x in example.args)
    empty = Example(args, {key: x[:0] for key, x in example.kwargs.items()})
    found = run(model, empty)
    assert [t.shape[1:] for t in found] == [t.shape[1:] for t in one]
    assert all(len(t) == 0 for t in found)


@pytest.mark.parametrize("execution", ["compact", "masked"])
def test_an_empty_batch_passes_a_norm_and_a_depthwise_convolution(execution):
    torch.manual_seed(0)
    model, call = BatchNormed().eval(), Example((torch.randn(2, 4, 6, 6),))
    assert {plan.mode for plan in gate_all(model, call).plans} == {"compact"}
    set_execution(model, execution)
    assert run(model, Example((call.args[0][:0],)))[0].shape == (0, 4, 6, 6)


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_a_cache_gives_what_it_gives_without(beams):
    torch.manual_seed(0)
    config = hf.T5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=64,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = hf.T5ForConditionalGeneration(config).eval()
    enliven(model)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 4:] = 0
    text = torch.randint(5, 60, (2, 9))
    call = {"input_ids": text, "attention_mask": mask}
    reply = {"decoder_input_ids": torch.randint(5, 60, (2, 7))}
    gate_all(model, Example((), {**call, **reply}))
    assert gates(model)
    stir(model)

    def write(**inputs):
        with torch.no_grad():
            return model.generate(
                **inputs, max_new_tokens=8, num_beams=beams, do_sample=False, use_cache=cached
            )

    cached = True
    quick = write(**call)
    alone = write(input_ids=text[1:, :4])
    encoder = model.get_encoder()
    with torch.no_grad():
        states = encoder(input_ids=text, attention_mask=mask)
        assert torch.equal(
            states.last_hidden_state, model(**call, **reply).encoder_last_hidden_state
        )
    cached = False
    assert torch.equal(write(**call), quick)
    assert torch.equal(alone[0], quick[1, : alone.shape[1]])
