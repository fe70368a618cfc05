"""Pictures become calls one by one, and a part of a data set is spread over all of it."""

import pytest
import torch

from dynprune.data import Preprocessing, normalise, open_dataset
from dynprune.measure.calls import PictureCalls, spread
from tests.data.scenes import folder


@pytest.fixture
def data(tmp_path):
    return open_dataset(folder(tmp_path, samples=5), "val")


def test_every_picture_is_one_call_normalised_and_at_its_own_size(data) -> None:
    calls = PictureCalls(data, Preprocessing((0.5, 0.5, 0.5), (1, 1, 1)))
    assert len(calls) == 5
    for index, call in enumerate(calls):
        image = data.load(index)[0]
        assert torch.equal(call.args[0], normalise(image[None], (0.5, 0.5, 0.5), (1, 1, 1)))
    assert torch.equal(calls[-1].args[0], calls[4].args[0])
    assert len(calls[1:3]) == 2
    with pytest.raises(IndexError, match="picture 5 of 5"):
        calls[5]


def test_a_part_is_spread_evenly(data) -> None:
    assert [path.stem for path in spread(data, 2).images] == ["0", "2"]
    assert spread(data, None) is data
    assert spread(data, 9) is data
