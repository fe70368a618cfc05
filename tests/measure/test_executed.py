"""Executed counts equal formulas written down independently, and published totals."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from dynprune.example import Example
from dynprune.measure.executed import count_executed, executed
from dynprune.rewrite import reapply, rewrite

B0 = {"depths": [2, 2, 2, 2], "hidden_sizes": [32, 64, 160, 256], "decoder_hidden_size": 256}
B2 = {"depths": [3, 4, 6, 3], "hidden_sizes": [64, 128, 320, 512], "decoder_hidden_size": 768}


def segformer(device: str = "cpu", **settings: object) -> nn.Module:
    with torch.device(device):
        return SegformerForSemanticSegmentation(SegformerConfig(**settings)).eval()


@pytest.mark.parametrize("shape", [(5, 6), (2, 5, 6), (2, 3, 5, 6)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("inference", [True, False])
def test_a_linear_costs_rows_times_in_times_out(
    shape: tuple[int, ...], bias: bool, inference: bool
) -> None:
    example = Example((torch.randn(shape),))
    with torch.inference_mode(inference):
        macs = executed(nn.Linear(6, 7, bias=bias), example)
    assert macs == torch.Size(shape[:-1]).numel() * 6 * 7


@pytest.mark.parametrize("groups", [1, 4])
def test_a_convolution_costs_outputs_times_its_window(groups: int) -> None:
    conv = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=groups)
    macs = executed(conv, Example((torch.randn(2, 4, 9, 7),)))
    assert macs == 2 * 8 * 5 * 4 * (4 // groups) * 9


def test_a_transposed_convolution_costs_inputs_times_its_window() -> None:
    conv = nn.ConvTranspose2d(4, 8, 3, stride=2)
    assert executed(conv, Example((torch.randn(2, 4, 5, 6),))) == 2 * 4 * 5 * 6 * 8 * 9


class Attention(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)


@pytest.mark.parametrize("backend", ["FLASH_ATTENTION", "MATH"])
def test_attention_costs_two_products_in_every_backend(backend: str) -> None:
    query, key, value = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    with torch.nn.attention.sdpa_kernel(getattr(torch.nn.attention.SDPBackend, backend)):
        macs = executed(Attention(), Example((query, key, value)))
    assert macs == 2 * 3 * 5 * 7 * (8 + 8)


def test_torchs_own_encoder_is_counted_by_its_parts() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    tokens = 2 * 5
    projections = tokens * (4 * 16 * 16 + 2 * 16 * 32)
    macs = executed(layer, Example((torch.randn(2, 5, 16),)))
    assert macs == projections + 2 * tokens * 5 * 16


class Products(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("bij,bjk->bik", a, b) + torch.baddbmm(a @ b, a, b)


def test_einsum_matmul_and_baddbmm_count_alike() -> None:
    a, b = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    assert executed(Products(), Example((a, b))) == 3 * (2 * 3 * 4 * 5)


def test_products_are_the_innermost_modules() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 2)))
    counted = count_executed(model, Example((torch.randn(3, 4),)))
    assert counted.by_module == {"0": 3 * 32, "1.1": 3 * 16}
    assert counted.total == sum(counted.by_op.values())
    assert not model[0]._forward_hooks
    assert not model[0]._forward_pre_hooks


@pytest.mark.parametrize(
    ("sizes", "classes", "image", "dense", "folded"),
    [
        (B0, 150, (512, 512), 8.39e9, 4.09e9),
        (B2, 150, (512, 512), 62.3e9, 23.7e9),
        (B0, 19, (1024, 2048), 121e9, 86.6e9),
    ],
    ids=["b0-ade20k", "b2-ade20k", "b0-cityscapes"],
)
def test_segformer_costs_what_was_published(
    sizes: dict[str, object], classes: int, image: tuple[int, int], dense: float, folded: float
) -> None:
    # Shapes suffice for a count: the model lives on the meta device.
    model = segformer("meta", num_labels=classes, **sizes)
    example = Example((torch.empty(1, 3, *image, device="meta"),))
    assert executed(model, example) == pytest.approx(dense, rel=0.01)
    small = segformer(num_labels=classes, **sizes | {"depths": [1, 1, 1, 1]})
    records = rewrite(small, Example((torch.randn(1, 3, 64, 64),)), ["fold-decoder"])
    reapply(model, records)
    assert executed(model, example) == pytest.approx(folded, rel=0.01)
