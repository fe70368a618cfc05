"""A sum computed in bands is the sum of resized maps."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from dynprune.example import Example
from dynprune.measure.executed import executed
from dynprune.rewrite.decoder import row_tiles as row_tiles_module
from dynprune.rewrite.decoder.row_tiles import Resize, Stage, resize_matrix, row_tiles_of_sum

RESIZES = [
    Resize("nearest"),
    Resize("bilinear", align_corners=False),
    Resize("bilinear", align_corners=True),
    Resize("bicubic", align_corners=False),
    Resize("area"),
]


@pytest.mark.parametrize("resize", RESIZES, ids=str)
@pytest.mark.parametrize(("size", "wanted"), [(5, 17), (16, 128), (9, 4), (1, 7)])
def test_a_matrix_resizes_one_axis(resize: Resize, size: int, wanted: int) -> None:
    x = torch.randn(2, 3, size, 6, dtype=torch.float64)
    matrix, first, last = resize_matrix(resize, size, wanted, x.dtype)
    expected = resize(x, (wanted, 6))
    torch.testing.assert_close(torch.einsum("oi,bciw->bcow", matrix, x), expected)
    for row, start, stop in zip(matrix, first, last, strict=True):
        assert row[start] != 0
        assert row[stop - 1] != 0
        assert not row[:start].any()
        assert not row[stop:].any()


@pytest.mark.parametrize("resize", RESIZES, ids=str)
@pytest.mark.parametrize("has_whole", [True, False])
@pytest.mark.parametrize("rows_of_a_band", [8, 32])
def test_bands_are_the_rows_of_the_sum(
    resize: Resize, *, has_whole: bool, rows_of_a_band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    height, width, channels = 29, 23, 12
    monkeypatch.setattr(row_tiles_module, "BAND", rows_of_a_band * width * channels)
    sizes = [(15, 12), (4, 3), *([(height, width)] if has_whole else [])]
    bias = torch.randn(channels)
    expected = bias[:, None, None].expand(channels, height, width)
    stages = []
    for rows, columns in sizes:
        whole = (rows, columns) == (height, width)
        x, weight = torch.randn(rows, columns, 5), torch.randn(channels, 5)
        stages.append(Stage(x, weight, None if whole else resize))
        y = F.linear(x, weight).permute(2, 0, 1)[None]
        expected = expected + (y if whole else resize(y, (height, width)))[0]
    bands = [(top, band.clone()) for top, band in row_tiles_of_sum(stages, bias, height, width)]
    assert [top for top, _ in bands] == [*range(0, height, rows_of_a_band)]
    torch.testing.assert_close(
        torch.cat([band for _, band in bands]).permute(2, 0, 1), expected, rtol=1e-4, atol=1e-5
    )


def test_a_map_is_resized_a_few_rows_ahead_and_never_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    height, width, channels = 64, 24, 12
    monkeypatch.setattr(row_tiles_module, "BAND", 8 * width * channels)
    rows = []

    class Spied(Resize):
        def __call__(self, x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
            if x.shape[1] == channels:
                rows.append(x.shape[2])
            return super().__call__(x, size)

    stage = Stage(
        torch.randn(32, 12, 5),
        torch.randn(channels, 5),
        Spied("bilinear", align_corners=False),
    )
    assert len(list(row_tiles_of_sum([stage], None, height, width))) == 8
    assert rows == [8 + 1, 8 + 2, 8 + 2, 8 + 1]  # of 16 rows of the sum, and their neighbours


def test_resizing_is_no_multiply_add_of_any_counter() -> None:
    resize = Resize("bilinear", align_corners=False)
    stages = [
        Stage(torch.randn(8, 6, 4), torch.randn(16, 4), None),
        Stage(torch.randn(4, 3, 4), torch.randn(16, 4), resize),
    ]

    class Sum(torch.nn.Module):
        def forward(self, _: torch.Tensor) -> torch.Tensor:
            return torch.cat([band for _, band in row_tiles_of_sum(stages, None, 8, 6)])

    products = (8 * 6 + 4 * 3) * 4 * 16
    assert executed(Sum(), Example((torch.zeros(1),))) == products
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        Sum()(torch.zeros(1))
    assert counter.get_total_flops() == 2 * products
