"""A gate by itself: scores and values by formula, what it keeps, and what it does to hosts."""

import pytest
import torch
from torch import nn

from dynprune.gate.call import Call, Scope, forcing, recording
from dynprune.gate.config import GateConfig
from dynprune.gate.heads import HeadWidth
from dynprune.gate.neuron_gate import NeuronGate
from dynprune.gate.padding import Masks, PaddingMask
from dynprune.gate.selection import GateOutput


def gate(neurons=16, heads=0, *, kind="ffn", in_features=6, **config):
    settings = GateConfig(**{"prune_ratio": 0.5, "align": 1, **config})
    made = NeuronGate(kind, kind, in_features, neurons, heads, config=settings).eval()
    if made.predictor is not None:
        nn.init.normal_(made.predictor.up.weight)
    nn.init.normal_(made.prior)
    made.verified = "compact"
    return made


def call(made, *masks):
    return Call(made.members.scope, "", 3, Masks(own=masks), {})


def f_by_hand(made, summary):
    """W_up ReLU(W_down LayerNorm(z) + b_down) + b_up."""
    predictor = made.predictor
    mean = summary.mean(1, keepdim=True)
    spread = (summary - mean).square().mean(1, keepdim=True)
    z = (summary - mean) / (spread + predictor.norm.eps).sqrt()
    hidden = (z @ predictor.down.weight.t() + predictor.down.bias).clamp_min(0)
    return hidden @ predictor.up.weight.t() + predictor.up.bias


@pytest.mark.parametrize("mode", ["value", "straight_through"])
def test_scores_and_values_are_the_formula(mode):
    made, tokens = gate(mode=mode), torch.randn(3, 5, 6)
    if mode == "value":
        made.beta.data.fill_(0.7)
    with torch.no_grad():
        found, f = made.scores(tokens), f_by_hand(made, tokens.mean(1))
    assert torch.allclose(found.scores, made.prior + f, atol=1e-5)
    if mode == "value":
        assert torch.allclose(found.factor, 1 + 0.7 * f, atol=1e-5)
    else:
        assert found.factor is None


def test_padding_does_not_count():
    made, tokens = gate(), torch.randn(3, 5, 6)
    real = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0]])
    mask = PaddingMask("attention_mask", real)
    with torch.no_grad(), recording() as seen:
        made.choose(tokens, call(made, mask))
        alone = [made.scores(tokens[i : i + 1, real[i].bool()]).scores[0] for i in range(3)]
    (found,) = seen["ffn"]
    assert torch.allclose(found.output.scores, torch.stack(alone), atol=1e-5)
    assert torch.equal(found.real, real.bool())


def test_what_is_chosen_is_put_into_the_call_and_nowhere_else():
    made, tokens = gate(), torch.randn(3, 5, 6)
    before = {**vars(made)}
    running = call(made)
    with torch.no_grad():
        chosen = made.choose(tokens, running)
    assert running.selections == {made.members: chosen}
    assert vars(made) == before


@pytest.mark.parametrize("order", ["fixed", "prefix", "random"])
def test_an_order_that_is_not_dynamic_is_that_of_the_prior_for_every_input(order):
    made = gate(order=order)
    assert made.predictor is None
    assert made.macs == 0
    chosen = made.choose(torch.randn(3, 5, 6), call(made))
    wanted = made.prior.topk(8).indices.sort().values
    assert torch.equal(chosen.index, wanted.expand(3, -1))
    assert chosen.value is None


def test_forced_scores_count_for_the_instances_that_there_are():
    made = gate()
    scores = torch.randn(5, 16)
    with torch.no_grad(), forcing({made.members: GateOutput(scores, torch.ones(5, 16))}):
        chosen = made.choose(torch.randn(2, 4, 6), call(made))
    assert torch.equal(chosen.index, scores[:2].topk(8).indices.sort().values)


def test_a_gate_without_values_takes_none_that_are_forced():
    made = gate(mode="straight_through")
    out = GateOutput(torch.randn(2, 16), torch.rand(2, 16))
    with torch.no_grad(), forcing({made.members: out}):
        assert made.choose(torch.randn(2, 4, 6), call(made)).value is None


@pytest.mark.parametrize("values", [True, False])
def test_the_values_of_an_observation_are_the_factors_or_a_sigmoid_of_the_lead(values):
    made = gate(mode="value" if values else "straight_through").train()
    with recording() as seen:
        made.choose(torch.randn(3, 5, 6), call(made))
    (found,) = seen["ffn"]
    if values:
        assert found.values is found.output.factor
        return
    least = found.output.scores.topk(8).values[:, -1:]
    assert torch.allclose(found.values, torch.sigmoid(found.output.scores - least))


def test_it_runs_masked_in_training_and_on_request_and_else_as_verified():
    made = gate()
    assert made.running == "compact"
    assert made.train().running == "masked"
    made.eval().requested = "masked"
    assert made.running == "masked"
    made.requested, made.verified = "compact", "scatter"
    assert made.running == "scatter"


def test_gates_that_share_a_head_s_width_keep_equally_many_and_set_it():
    host = nn.Module()
    host.head_dim = 8
    qk, v = gate(32, 4, kind="qk", prune_ratio=0.5), gate(32, 4, kind="v", prune_ratio=0.25)
    assert (qk.kept, v.kept) == (4, 6)
    width = HeadWidth(host, "head_dim", 8, True)
    qk.narrow_heads([width], [v])
    v.narrow_heads([width], [qk])
    assert (qk.kept, v.kept, host.head_dim) == (6, 6, 6)
    for made in (qk, v):
        made.set_prune_ratio(0.75)
    assert host.head_dim == 2
    qk.train()
    assert host.head_dim == 8
    qk.eval()
    assert host.head_dim == 2
    qk.narrow_heads(())
    assert (host.head_dim, qk.own_kept) == (8, 2)


def test_an_impossible_ratio_changes_nothing():
    made = gate()
    with pytest.raises(ValueError, match="prune_ratio=1"):
        made.set_prune_ratio(1.0)
    assert (made.prune_ratio, made.kept, made.keep_ratio) == (0.5, 8, 0.5)


@pytest.mark.parametrize(
    ("kind", "compensation", "learns"),
    [("ffn", "mean", False), ("ffn", "learned", True), ("ffn", "zero", None), ("qk", "mean", None)],
)
def test_a_mean_is_there_where_a_consumer_can_add_it_and_learns_where_asked(
    kind, compensation, learns
):
    mean = gate(16, 4, kind=kind, compensation=compensation).mean
    assert (mean is None) == (learns is None)
    assert mean is None or mean.requires_grad == learns


def test_the_hidden_layer_has_the_width_asked_for_and_never_under_eight():
    assert gate(hidden=3).predictor.down.out_features == 3
    assert gate(in_features=6).predictor.down.out_features == 8
    wide = gate(in_features=640, hidden_ratio=0.0625)
    assert wide.predictor.down.out_features == 40
    assert wide.macs == 640 * 40 + 40 * 16


def test_gates_without_a_model_have_scopes_of_their_own():
    assert gate().members.scope is not gate().members.scope
    scope = Scope()
    made = NeuronGate("g", "ffn", 4, 8, 0, config=GateConfig(), scope=scope)
    assert made.members.scope is scope
