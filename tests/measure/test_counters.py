"""Our count is fvcore's and torch's wherever they have a formula."""

import pytest
import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.measure.counters import compare_counters, fvcore_macs
from dynprune.rewrite import rewrite


def test_every_counter_agrees_on_the_operators_that_it_counts() -> None:
    config = SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], decoder_hidden_size=32, num_labels=5
    )
    model = SegformerForSemanticSegmentation(config).eval()
    example = Example((torch.randn(1, 3, 97, 131),))
    for _ in ("dense", "folded"):
        ours, fvcore, torchs = compare_counters(model, example)
        assert ours.macs == ours.comparable
        assert fvcore.macs == fvcore.comparable < ours.macs
        assert torchs.macs == torchs.comparable
        assert "attention" in fvcore.reason
        rewrite(model, example, ["fold-decoder"])


def test_fvcore_says_that_it_takes_no_keyword_arguments() -> None:
    with pytest.raises(UsageError, match="positional arguments alone, not \\['x'\\]"):
        fvcore_macs(torch.nn.Linear(2, 2), Example(kwargs={"x": torch.zeros(1, 2)}))
