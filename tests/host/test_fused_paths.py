"""Torch's fused layers read weights, not modules: what is put into them must run all the same."""

import copy

import pytest
import torch
from torch import nn

import dynprune
from dynprune.example import Example
from dynprune.gate import GateConfig, gate_model, gates, recording, remove
from dynprune.graph import find_groups
from dynprune.host.fused_paths import close_fused_paths, open_fused_paths
from dynprune.host.modes import at_inference


def encoder() -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.TransformerEncoder(layer, 2).eval()


def switches(model):
    """Return what decides whether the fused kernels run."""
    layers = [layer.activation_relu_or_gelu for layer in model.layers]
    return [*layers, model.use_nested_tensor]


@pytest.fixture
def fused():
    """Make sure that torch would use its kernels: the tests' own runs forbid them elsewhere."""
    assert torch.backends.mha.get_fastpath_enabled()


def test_only_layers_that_hold_a_replaced_module_are_closed():
    model = encoder()
    model.layers[1].linear1 = new = nn.Linear(16, 32)
    closed = close_fused_paths(model, [new])
    assert switches(model) == [1, 0, False]
    open_fused_paths(closed)
    assert switches(model) == [1, 1, True]


def test_what_was_closed_before_stays_closed():
    model = encoder()
    first = close_fused_paths(model, [model.layers[0].linear1])
    second = close_fused_paths(model, model.layers)
    open_fused_paths(second)
    assert switches(model) == [0, 1, False]
    open_fused_paths(first)
    assert switches(model) == [1, 1, True]


@pytest.mark.usefixtures("fused")
def test_gates_in_a_fused_layer_run_at_inference():
    """Without attention unpacked as well: the hidden layers' gates alone must count."""
    model, x = encoder(), torch.randn(3, 5, 16)
    groups = find_groups(model, Example((x,))).groups
    before = switches(model)
    config = GateConfig(prune_ratio=0.5, align=1)
    gate_model(model, Example((x,)), groups, {group.name: config for group in groups})
    with torch.no_grad(), recording() as seen:
        fused = model(x)
    assert set(seen) == set(gates(model))
    assert torch.allclose(fused, model(x), atol=1e-5)  # with gradients nothing is fused
    remove(model)
    assert switches(model) == before


@pytest.mark.usefixtures("fused")
def test_padded_inputs_reach_the_gates_unpacked():
    model, x = encoder(), torch.randn(3, 5, 16)
    dense = copy.deepcopy(model)
    padding = torch.tensor([[0] * 5, [0, 0, 0, 0, 1], [0, 0, 1, 1, 1]], dtype=torch.bool)
    call = {"src": x, "src_key_padding_mask": padding}
    recipe = dynprune.load_recipe("any", ["apply.gate.align=1", "sparsity.final=0.0"])
    dynprune.apply(model, call, recipe, calibration=[call])
    with torch.no_grad(), recording() as seen:
        found = model(**call)
    with at_inference(dense):
        expected = dense(**call)
    assert torch.allclose(found[~padding], expected[~padding], atol=1e-5)
    assert seen
    assert all(torch.equal(gate.real, ~padding) for (gate,) in seen.values())
