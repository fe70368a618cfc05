"""An output is followed to its addition, and what the stream lacks is brought back to it."""

import pytest
import torch
from torch import nn

from dynprune.planning.stream import Follow, correction

WIDTH = 6
SCALE = torch.linspace(0.5, 2.0, WIDTH)


def plain(y, stream):
    return stream + y


def in_place(y, stream):
    y += stream
    return y


def scaled(y, stream):
    return stream + nn.functional.dropout(y, 0.5, training=False) * SCALE


def halved_with_a_constant(y, stream):
    return (y + SCALE) * 0.5 + stream


def turned(y, stream):
    return y.transpose(1, 2).contiguous() + stream


def windows(y, stream):
    batch = stream.shape[0]
    back = y.view(batch, 2, 2, 2, 2, WIDTH).permute(0, 1, 3, 2, 4, 5).reshape(batch, 16, WIDTH)
    return back.view(batch, 4, 4, WIDTH).roll((1, 1), (1, 2)).flatten(1, 2) + stream


WAYS = {
    plain: (2, 16, WIDTH),
    in_place: (2, 16, WIDTH),
    scaled: (2, 16, WIDTH),
    halved_with_a_constant: (2, 16, WIDTH),
    turned: (2, WIDTH, 16),
    windows: (2, 16, WIDTH),
}


def followed(way, y, stream):
    ended = []
    follow = Follow(lambda: ended.append(True))
    with follow:
        follow.start(y, WIDTH)
        result = way(y, stream)
    return follow, result, ended


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_corrected_output_gives_the_dense_stream(way):
    shape = (2, 16, WIDTH)
    stream, other, y = torch.randn(WAYS[way]), torch.randn(WAYS[way]), torch.randn(shape)
    dense, wanted, ended = followed(way, y.clone(), stream)
    pruned, _, _ = followed(way, torch.randn(shape), other)
    assert ended == [True]
    more = correction(y, dense.added, pruned.added)
    assert torch.allclose(way(y + more, other.clone()), wanted, atol=1e-5)


@pytest.mark.parametrize(
    "way",
    [
        lambda y, stream: torch.relu(y) + stream,
        lambda y, stream: nn.functional.layer_norm(y, (WIDTH,)) + stream,
        lambda y, stream: y * stream + stream,
        lambda y, stream: y + y,
        lambda y, stream: y @ torch.eye(WIDTH) + stream,
    ],
    ids=["relu", "norm", "gated", "doubled", "product"],
)
def test_what_is_not_simply_added_is_not_corrected(way):
    shape = (2, 16, WIDTH)
    dense, _, ended = followed(way, torch.randn(shape), torch.randn(shape))
    assert dense.added is None
    assert ended == [True]
    assert not correction(torch.randn(shape), dense.added, dense.added).any()


def test_channels_that_hardly_reach_the_stream_do_not_answer_for_it():
    scale = torch.tensor([1.0, 1.0, 1e-9, 0.0, 1.0, 1.0])

    def way(y, stream):
        return stream + y * scale

    shape = (2, 16, WIDTH)
    y = torch.randn(shape)
    dense, _, _ = followed(way, y, torch.randn(shape))
    pruned, _, _ = followed(way, y, torch.randn(shape))
    more = correction(y, dense.added, pruned.added)
    assert not more[..., 2:4].any()
    assert bool((more[..., [0, 1, 4, 5]] != 0).all())


def test_nothing_is_corrected_where_both_are_added_in_other_ways():
    shape = (2, 16, WIDTH)
    y = torch.randn(shape)
    dense, _, _ = followed(plain, y, torch.randn(shape))
    pruned, _, _ = followed(scaled, y, torch.randn(shape))
    assert not correction(y, dense.added, pruned.added).any()
