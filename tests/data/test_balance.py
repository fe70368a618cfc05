import pytest
import torch

from dynprune.data import open_dataset
from dynprune.data.balance import class_shares, inverse_root_weights
from dynprune.errors import InputError
from tests.data.scenes import folder


def test_shares_are_those_of_the_labelled_pixels(tmp_path):
    data = open_dataset(folder(tmp_path), "train")
    counts = torch.zeros(len(data.classes), dtype=torch.float64)
    for index in range(len(data)):
        label = data.load(index)[1]
        for value in label[label != 255].tolist():
            counts[value] += 1
    assert class_shares(data) == pytest.approx((counts / counts.sum()).tolist())


def test_weights_have_a_mean_of_one_over_the_pixels_and_fall_with_the_root_of_the_share():
    shares = [0.81, 0.16, 0.03, 0.0]
    weights = inverse_root_weights(shares)
    assert sum(w * p for w, p in zip(weights, shares, strict=True)) == pytest.approx(1.0)
    assert weights[1] / weights[0] == pytest.approx((0.81 / 0.16) ** 0.5)
    assert weights[3] == weights[2]


def test_data_without_labels_has_no_shares(tmp_path):
    data = open_dataset(folder(tmp_path), "train")
    for index in range(len(data)):
        data.load(index)[1].fill_(255)
    with pytest.raises(InputError, match="no pixel"):
        class_shares(data)
