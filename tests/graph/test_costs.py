"""The counted multiply-adds equal independent counts, and their axes carry the right shares."""

import pytest
import torch
import transformers as hf
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dynprune.example import Example
from dynprune.graph import find_groups
from tests.graph.explored import explored
from tests.zoo import ZOO


def counted_by_torch(model: nn.Module, example: Example) -> int:
    """Multiply-adds by torch's own counter; attention in its plain form, which it can see."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            example.run(model)
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", ZOO)
def test_the_total_equals_that_of_torch(name):
    model, example, grouping = explored(name)
    total = sum(node.macs for node in grouping.costs)
    # CLIP's logits are a product over the batch squared, counted here as linear in the batch.
    slack = 16 if name == "clip" else 0
    assert abs(total - counted_by_torch(model, example)) <= slack


def test_the_total_is_for_the_batch_of_the_example():
    model, example = ZOO["vit"].made()
    once = sum(node.macs for node in find_groups(model, example).costs)
    thrice = sum(node.macs for node in find_groups(model, example.batched(3)).costs)
    assert thrice == 3 * once


def test_segformer_b0_costs_what_its_paper_says():
    """8.4 G at 512x512 with 150 classes, and 3.27 G with 30 % of the encoder pruned and folded."""
    model = hf.SegformerForSemanticSegmentation(hf.SegformerConfig(num_labels=150)).eval()
    grouping = find_groups(model, Example((torch.zeros(1, 3, 512, 512),)))
    total = sum(node.macs for node in grouping.costs)
    assert total == pytest.approx(8.39e9, rel=0.01)
    encoder = [g.name for g in grouping.candidates if not g.name.startswith("decode_head")]
    fused = next(n.macs for n in grouping.costs if n.module == "decode_head.linear_fuse")
    for keep, expected in ((0.7, 3.27e9), (0.5, 2.72e9)):
        pruned = sum(node.pruned(dict.fromkeys(encoder, keep)) for node in grouping.costs)
        assert pruned - fused == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("name", ["vit", "pvt_v2", "bert", "gpt2", "fused_vit", "llama"])
def test_pruned_costs_equal_those_of_a_model_built_narrower(name):
    """Half of everything: the same architecture with half the hidden width and head width."""
    _, _, grouping = explored(name)
    half = {group.name: 0.5 for group in grouping.candidates}
    for node in grouping.costs:
        expected = node.macs
        if node.op in ("qk", "av"):
            expected /= 2
        kept_out = {True: 0.5, False: 1.0}
        makes = any(
            node.module in [c.module for c in (*g.producers, *g.carriers)]
            for g in grouping.candidates
        )
        reads = any(node.module in [c.module for c in g.consumers] for g in grouping.candidates)
        if node.op in ("linear", "conv", "depthwise"):
            expected *= kept_out[makes] * kept_out[reads]
        assert node.pruned(half) == pytest.approx(expected), node


def test_a_fused_projection_is_shared_by_its_groups():
    _, _, grouping = explored("fused_vit")
    node = next(node for node in grouping.costs if node.module == "blocks.0.attn.qkv")
    shares = dict(node.out.shares)
    assert shares == {
        "blocks.0.attn.qkv[qk]": pytest.approx(2 / 3),
        "blocks.0.attn.qkv[v]": pytest.approx(1 / 3),
    }
