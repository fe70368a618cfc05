"""Every token of a hidden layer chooses for itself: one at a time it gathers, many are masked."""

import pytest
import torch
from torch import nn

from dynprune.example import Example
from dynprune.gate import GateConfig, gate_model, gates, recording, set_execution
from dynprune.gate.token_predictor import ProjectionPredictor
from dynprune.gate.token_trial import MIXED
from dynprune.graph import find_groups
from dynprune.host.modes import at_inference
from tests.gate.zoo_laws import ROUNDING, error, run
from tests.plain_models import SwiGlu
from tests.zoo import ZOO


def gated_per_token(name, **config):
    """Return an animal whose hidden layers choose by token, with random predictors."""
    model, example = ZOO[name].made()
    return *put_in(model, example, **config), example


def put_in(model, example, *, ratio=0.5, **config):
    groups = find_groups(model, example).groups
    settings = GateConfig(prune_ratio=ratio, align=1, grain="token", **config)
    record = gate_model(model, example, groups, {group.name: settings for group in groups})
    random = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for gate in gates(model).values():
            for parameter in gate.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=random))
            if gate.mean is not None:
                gate.mean.zero_()
    return model, record


def modes(record):
    return {plan.group.name: plan.mode for plan in record.plans if plan.group.kind == "ffn"}


class Mlp(nn.Module):
    """A hidden layer whose neurons pass through something on their way."""

    def __init__(self, between):
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 6)
        self.between = between

    def forward(self, x):
        return self.second(self.between(torch.relu(self.first(x))))


FAMILIES = ["vit", "bert", "gpt2", "llama", "phi3", "t5", "conv1x1_convnext", "dinov2_swiglu"]


@pytest.mark.parametrize("name", FAMILIES)
def test_hidden_layers_choose_per_token_in_every_family(name):
    _, record, _ = gated_per_token(name)
    assert set(modes(record).values()) == {"compact"}
    assert {plan.mode for plan in record.plans if plan.group.kind != "ffn"} <= {"refused"}


@pytest.mark.parametrize("name", [*FAMILIES, "swin", "torch_encoder"])
def test_what_a_token_chooses_depends_on_nothing_but_the_token(name):
    model, _, example = gated_per_token(name)
    first = next(iter(gates(model)))

    def chosen(call):
        with at_inference(model), recording() as seen:
            call.run(model)
        (observation, *_) = seen[first]
        return observation.tokens.squeeze(1), observation.selection.keep

    tokens, keep = chosen(example)
    others, theirs = chosen(example.batched(3, seed=9))
    for token, kept in zip(tokens, keep, strict=True):
        for other in (others == token).all(1).nonzero().flatten():
            assert torch.equal(kept, theirs[other])


def test_a_depthwise_convolution_between_refuses_the_tokens_choice():
    _, record, _ = gated_per_token("mmseg_segformer")
    found = {p.reason for p in record.plans if p.group.kind == "ffn" and p.group.carriers}
    assert found == {MIXED}


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda y: y + y.roll(1, 1), MIXED),
        (lambda y: y * torch.softmax(y, 1), MIXED),
        (lambda y: y * 2.0, None),
    ],
)
def test_code_that_mixes_tokens_refuses_their_choice(between, reason):
    model, example = Mlp(between), Example((torch.randn(2, 5, 6),))
    _, record = put_in(model.eval(), example)
    (plan,) = record.plans
    if plan.mode == "refused" and reason is not None:
        return
    assert plan.reason == reason


@pytest.mark.parametrize("predict", ["low-rank", "gate-projection", "both"])
def test_one_token_gathers_what_it_computes_masked(predict):
    model, example = SwiGlu(6, 16).eval(), Example((torch.randn(2, 5, 6),))
    model, record = put_in(nn.Sequential(model), example, predict=predict)
    assert [plan.mode for plan in record.plans] == ["compact"]
    whole = run(model, example)
    for row in range(2):
        for token in range(5):
            call = Example((example.args[0][row : row + 1, token : token + 1],))
            with recording() as seen:
                alone = run(model, call)
            ((observation,),) = seen.values()
            assert observation.selection.execution == "compact"
            set_execution(model, "masked")
            assert error(alone, run(model, call)) < ROUNDING
            set_execution(model, "compact")
            wanted = [whole[0][row : row + 1, token : token + 1]]
            assert error(alone, wanted) < ROUNDING


def test_what_is_kept_of_a_gate_projection_is_not_computed_twice():
    model, _ = put_in(
        nn.Sequential(SwiGlu(6, 16)).eval(), Example((torch.randn(2, 5, 6),)), predict="both"
    )
    (gate,) = gates(model).values()
    assert isinstance(gate.predictor, ProjectionPredictor)
    assert gate.predictor.activation == "silu"
    shapes = []
    read = model.get_submodule("0.w3")
    handle = read.register_forward_hook(lambda _m, _a, y: shapes.append(y.shape[-1]))
    with torch.no_grad():
        model(torch.randn(1, 1, 6))
    handle.remove()
    assert shapes == [8]


def test_a_layer_without_a_gate_projection_says_so():
    _, record = put_in(
        Mlp(torch.relu).eval(), Example((torch.randn(2, 5, 6),)), predict="gate-projection"
    )
    (plan,) = record.plans
    assert plan.reason.startswith("it has no gate projection to choose by: its neurons come from 1")
