"""What the page on growth counts: bytes at the peak of a call, and how far figures grew."""

import torch
from torch import nn

from benchmarks.growth import AXES, FORMS, peak_mb, table
from dynprune.example import Example


def test_the_peak_holds_what_stands_at_once_and_no_weights():
    x = torch.randn(1, 1000)
    layers = nn.Sequential(nn.Linear(1000, 3000), nn.Linear(3000, 10)).eval()
    with torch.inference_mode():
        found = peak_mb(layers, Example((x,)))
    assert 4 * 3000 <= found * 1e6 < 4 * 3000 + 5000


def test_a_table_has_a_line_for_each_size_and_says_how_far_every_form_grew():
    forms = ("dense", *FORMS)
    points = {
        str(size): {"ms": dict.fromkeys(forms, size), "peak_mb": dict.fromkeys(forms, 2.0 * size)}
        for size in (1, 4)
    }
    points["4"]["ms"]["fixed"] = 2
    lines = table(AXES["batch"], points)
    (first,) = [line for line in lines if line.startswith("| 4 |")]
    assert "| 4.0 | 2.0 |" in first
    assert "| 2.00 |" in first  # dense over fixed
    (grown,) = [line for line in lines if line.startswith("| grew by")]
    assert grown.count("x4.0") == 5
    assert grown.count("x2.0") == 1
