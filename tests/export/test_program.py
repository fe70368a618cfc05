"""A program is written in the forms that engines run fastest."""

import copy

import pytest
import torch
from torch import fx, nn

from dynprune.example import Example
from dynprune.export.program import Target, exportable

ATEN = torch.ops.aten


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def graph(gated: nn.Module, example: Example, request: pytest.FixtureRequest) -> fx.Graph:
    target: Target = request.param
    return exportable(gated, example, target=target, fixed_size=True).program.graph


def test_no_gathered_weight_is_moved_before_its_product(graph: fx.Graph) -> None:
    gathers = [node for node in graph.nodes if node.target == ATEN.index_select.default]
    assert gathers
    moved = {user.target for node in gathers for user in readers(node)}
    assert not moved & {ATEN.transpose.int, ATEN.permute.default}


def test_the_map_that_is_not_resized_joins_the_decoders_sum_last(graph: fx.Graph) -> None:
    resized = {ATEN.upsample_bilinear2d.vec, ATEN.upsample_bilinear2d.default}
    sums = [
        node
        for node in graph.nodes
        if node.target in {ATEN.add.Tensor, ATEN.add_.Tensor}
        and any(arg.target in resized for arg in node.all_input_nodes)
    ]
    assert sums
    assert [arg.target for arg in sums[-1].all_input_nodes].count(ATEN.conv2d.default) == 1
    (after,) = sums[-1].users
    assert after.target in {ATEN.relu.default, ATEN.relu_.default}


def readers(node: fx.Node) -> list[fx.Node]:
    """Return what reads a node behind views that move nothing."""
    views = {ATEN.view.default, ATEN.reshape.default, ATEN.unsqueeze.default}
    found: list[fx.Node] = []
    for user in node.users:
        found += readers(user) if user.target in views else [user]
    return found


def test_onnxruntime_adds_the_decoder_in_slices_of_channels(
    gated: nn.Module, example: Example
) -> None:
    def maps(target: Target, *, fixed_size: bool) -> list[int]:
        made = exportable(gated, example, target=target, fixed_size=fixed_size).program.graph
        relus = [n for n in made.nodes if n.target in {ATEN.relu.default, ATEN.relu_.default}]
        return [n.meta["val"].shape[1] for n in relus if n.meta["val"].dim() == 4]

    assert maps("onnxruntime", fixed_size=True) == [16, 16]
    assert maps("onnxruntime", fixed_size=False) == [32]
    assert maps("openvino", fixed_size=True) == [32]


def test_a_model_that_was_exported_keeps_nothing_of_the_trace(
    gated: nn.Module, example: Example
) -> None:
    exportable(gated, example, target="onnxruntime")
    twin = copy.deepcopy(gated)
    torch.testing.assert_close(example.run(twin).logits, example.run(gated).logits)


def test_a_model_in_training_can_be_copied(gated: nn.Module, example: Example) -> None:
    twin = copy.deepcopy(gated).train()
    example.run(twin)  # leaves tensors that carry a gradient
    again = copy.deepcopy(twin).eval()
    torch.testing.assert_close(example.run(again).logits, example.run(twin.eval()).logits)


@pytest.mark.parametrize(("target", "as_published"), [("openvino", True), ("onnxruntime", False)])
def test_only_openvino_divides_by_the_root_mean_square(
    gated: nn.Module, example: Example, *, target: Target, as_published: bool
) -> None:
    """Its file has the predictors' norms alone, of pooled channels (1, C)."""

    def norms(target: Target, *, as_published: bool) -> set[int]:
        made = exportable(
            gated, example, target=target, fixed_size=True, as_published=as_published
        ).program.graph
        found = [n for n in made.nodes if n.target == ATEN.layer_norm.default]
        return {n.meta["val"].dim() for n in found}

    assert norms("openvino", as_published=False) == {2}
    assert len(norms(target, as_published=as_published)) > 1
