"""Every token of a hidden layer chooses for itself: one at a time it gathers, many are masked."""

import pytest
import torch
from torch import nn

from dynprune.example import Example
from dynprune.gate import gates, recording, set_execution
from dynprune.gate.token_predictor import ProjectionPredictor
from dynprune.host.modes import at_inference
from tests.gate.zoo_laws import ROUNDING, error, gated_per_token, run
from tests.plain_models import SwiGlu
from tests.zoo import ZOO


def animal(name, **config):
    """Return an animal whose hidden layers choose by token, with random predictors."""
    model, example = ZOO[name].made()
    return *gated_per_token(model, example, **config), example


def modes(record):
    return {plan.group.name: plan.mode for plan in record.plans if plan.group.kind == "ffn"}


FAMILIES = ["vit", "bert", "gpt2", "llama", "phi3", "t5", "conv1x1_convnext", "dinov2_swiglu"]


@pytest.mark.parametrize("name", FAMILIES)
def test_hidden_layers_choose_per_token_in_every_family(name):
    _, record, _ = animal(name)
    assert set(modes(record).values()) == {"compact"}
    assert {plan.mode for plan in record.plans if plan.group.kind != "ffn"} <= {"refused"}


@pytest.mark.parametrize("name", [*FAMILIES, "swin", "torch_encoder"])
def test_what_a_token_chooses_depends_on_nothing_but_the_token(name):
    model, _, example = animal(name)
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


@pytest.mark.parametrize("predict", ["low-rank", "gate-projection", "both"])
def test_one_token_gathers_what_it_computes_masked(predict):
    model, example = SwiGlu(6, 16).eval(), Example((torch.randn(2, 5, 6),))
    model, record = gated_per_token(nn.Sequential(model), example, predict=predict)
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
    model, _ = gated_per_token(
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
