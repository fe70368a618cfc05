from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dynprune.errors import UsageError
from dynprune.tasks import logits as module
from dynprune.tasks.logits import label_map, logits_of, window_logits

LOGITS = torch.randn(1, 3, 4, 4)
OTHER = torch.zeros(2)


@dataclass
class Output:
    loss: torch.Tensor
    logits: torch.Tensor


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        (LOGITS, OTHER),
        [None, LOGITS],
        {"loss": OTHER, "logits": LOGITS},
        {"aux": OTHER, "out": LOGITS},
        {"anything": LOGITS},
        Output(OTHER, LOGITS),
        namedtuple("Pair", "first second")(LOGITS, OTHER),
    ],
    ids=lambda output: type(output).__name__,
)
def test_logits_are_found_in_every_kind_of_output(output):
    assert logits_of(output) is LOGITS


@pytest.mark.parametrize("output", [None, (), {"loss": 1.0}, "text", Output])
def test_an_output_without_a_tensor_is_refused(output):
    with pytest.raises(UsageError, match="no logits in the model's output of type"):
        logits_of(output)


@pytest.mark.parametrize("size", [(4, 4), (9, 13), (3, 2)])
@pytest.mark.parametrize("elements", [1, 100, 1 << 26])
def test_a_label_map_is_the_argmax_of_resized_logits_however_many_classes_at_once(
    size, elements, monkeypatch
):
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", elements)
    logits = torch.randn(2, 7, 4, 4, generator=torch.Generator().manual_seed(0))
    resized = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    assert torch.equal(label_map(logits, size), resized.argmax(1))


class Pointwise(nn.Module):
    """Logits that depend on their own pixel alone, so that windows change nothing."""

    def forward(self, images):
        return torch.stack([images[:, 0], images[:, 1] ** 2, -images[:, 2]], dim=1)


@pytest.mark.parametrize("size", [(8, 8), (13, 17), (5, 30), (8, 9)])
@pytest.mark.parametrize("stride", [(8, 8), (5, 3), (1, 8)])
def test_windows_of_a_pointwise_model_are_the_whole_picture(size, stride):
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    model = Pointwise()
    # a mean of equal float32 numbers
    torch.testing.assert_close(
        window_logits(model, images, (8, 8), stride), model(images), rtol=1e-5, atol=1e-5
    )


class Marker(nn.Module):
    """Counts how often every pixel is seen, at half resolution."""

    def forward(self, images):
        self.sizes = {*getattr(self, "sizes", ()), tuple(images.shape[-2:])}
        return F.avg_pool2d(images, 2)


def test_every_window_has_the_full_size_where_the_picture_allows_it():
    model = Marker()
    output = window_logits(model, torch.ones(1, 3, 21, 30), (8, 10), (6, 7))
    assert model.sizes == {(8, 10)}
    # ones stay ones under pooling, resizing and averaging
    torch.testing.assert_close(output, torch.ones(1, 3, 21, 30))


@pytest.mark.parametrize("stride", [(9, 8), (8, 0)])
def test_a_stride_that_leaves_gaps_is_refused(stride):
    with pytest.raises(UsageError, match="at most the window's side"):
        window_logits(Pointwise(), torch.zeros(1, 3, 20, 20), (8, 8), stride)
