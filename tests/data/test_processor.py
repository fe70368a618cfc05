"""The settings of image processors are followed as the processors themselves follow them."""

import re

import numpy as np
import pytest
import torch
import transformers

from dynprune.data import LabelValues, Preprocessing, is_of_pictures, read_processor
from dynprune.errors import InputError

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
SEGFORMERS = [
    {"do_resize": False},
    {"do_resize": False, "image_mean": [0.0] * 3, "image_std": [1.0] * 3},
    {"do_resize": False, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]},
    {"do_resize": False, "do_normalize": False},
    {"do_resize": False, "do_rescale": False},
    {"do_resize": False, "do_rescale": False, "do_normalize": False},
    {"do_resize": False, "rescale_factor": 1 / 127.5},
    {"do_resize": False, "rescale_factor": 1 / 127.5, "do_normalize": False},
    {"size": {"height": 24, "width": 33}},
    {"size": {"height": 24, "width": 33}, "resample": 3},
    {"size": {"height": 24, "width": 33}, "resample": 0},
    {"size": {"height": 24, "width": 33}, "resample": 1},
]
OTHERS = [
    ("BeitImageProcessorPil", {"size": {"height": 20, "width": 30}, "do_center_crop": False}),
    ("DPTImageProcessorPil", {"size": {"height": 20, "width": 30}}),
    ("ViTImageProcessorPil", {"size": {"height": 20, "width": 20}}),
    ("MobileNetV2ImageProcessorPil", {"size": {"shortest_edge": 21}, "do_center_crop": False}),
    ("CLIPImageProcessorPil", {"size": {"shortest_edge": 21}, "do_center_crop": False}),
    ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 384}}),
    (
        "MobileViTImageProcessorPil",
        {"do_resize": False, "do_center_crop": False, "do_flip_channel_order": False},
    ),
]


def followed(values):
    found = read_processor(values)
    preprocessing = Preprocessing(found.mean, found.std, found.resize)
    return preprocessing(torch.from_numpy(PICTURE).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("name", "settings"),
    [*(("SegformerImageProcessorPil", settings) for settings in SEGFORMERS), *OTHERS],
    ids=str,
)
def test_pictures_go_in_as_the_processor_itself_makes_them(name, settings):
    processor = getattr(transformers, name)(**settings)
    expected = processor(images=PICTURE, return_tensors="pt")["pixel_values"]
    made = followed(processor.to_dict())
    assert made.shape == expected.shape
    # float32 of pixels from 0 to 255, in another order of the same operations
    scale = expected.abs().max().clamp_min(1)
    assert (made - expected).abs().max() < 1e-6 * scale


@pytest.mark.parametrize("reduce", [True, False])
def test_labels_are_reduced_as_the_processor_itself_does(reduce):
    label = np.arange(256, dtype=np.uint8).reshape(16, 16)
    processor = transformers.SegformerImageProcessorPil(do_resize=False, do_reduce_labels=reduce)
    picture = np.zeros((16, 16, 3), dtype=np.uint8)
    made = processor(images=picture, segmentation_maps=label, return_tensors="pt")["labels"]
    values = LabelValues(reduce=read_processor(processor.to_dict()).reduce_labels)
    assert torch.equal(values.table().long().view(1, 16, 16), made.long())


def test_a_file_of_a_few_lines_is_read_as_its_writer_means_it():
    found = read_processor({"image_mean": [0, 0, 0], "image_std": [1, 1, 1]})
    assert (found.mean, found.std, found.resize) == ((0, 0, 0), (1, 1, 1), None)
    assert read_processor({"image_mean": 0.5, "image_std": [0.25]}).std == (0.25, 0.25, 0.25)
    assert read_processor({"reduce_labels": True}).reduce_labels  # its name of old
    assert read_processor({"image_processor_type": "BeitImageProcessor"}).mean == (0.5, 0.5, 0.5)
    old = read_processor({"feature_extractor_type": "SegformerFeatureExtractor", "size": 32})
    assert old.resize.size_of(5, 9) == (32, 32)
    edge = read_processor({"image_processor_type": "CLIPImageProcessor", "size": 32})
    assert edge.resize.size_of(16, 24) == (32, 48)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"do_center_crop": True}, ("do_center_crop .*nothing is cut off",)),
        ({"do_pad": True, "size_divisor": 32}, ("do_pad", "size_divisor")),
        ({"do_something_new": True}, ("do_something_new",)),
        ({"keep_aspect_ratio": True, "ensure_multiple_of": 32}, ("keep_aspect", "ensure_mult")),
        ({"crop_pct": 0.9, "size": {"shortest_edge": 90}}, ("crop_pct",)),
        ({"do_center_crop": False, "ensure_multiple_of": 1, "do_convert_rgb": True}, ()),
    ],
)
def test_what_is_not_followed_is_told(values, words):
    told = read_processor(values).not_followed
    assert len(told) == len(words)
    for word in words:
        assert any(re.match(word, text) for text in told)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_mean": [0.5, 0.5]}, "image_mean for 2 channels"),
        ({"image_mean": "half"}, "image_mean: half"),
        ({"image_mean": [float("nan")] * 3}, "image_mean: nan"),
        ({"image_std": [0, 1, 1]}, "image_std: .* over 0"),
        ({"rescale_factor": 0}, "rescale_factor: 0"),
        ({"rescale_factor": 10**400}, "rescale_factor: 1000"),
        ({"do_normalize": "yes"}, "do_normalize: yes; it is either true or false"),
        ({"do_resize": True}, "do_resize and no size"),
        ({"size": {"height": 5}}, "size: .*height"),
        ({"size": {"height": 0, "width": 4}}, "height: 0"),
        ({"size": {"height": 10**9, "width": 4}}, "height: 1000000000"),
        ({"size": 32}, "a square or a shorter side"),
        ({"size": "big"}, "size: big"),
        ({"size": {"shortest_edge": 8}, "resample": 17}, "resample: 17"),
        ({"do_flip_channel_order": True}, "blue, green, red"),
        ({"image_processor_type": "MobileViTImageProcessor"}, "blue, green, red"),
    ],
)
def test_what_cannot_be_meant_or_followed_is_refused_by_its_key(values, message):
    with pytest.raises(InputError, match=f"m/preprocessor_config.json says .*{message}"):
        read_processor(values, where="m/preprocessor_config.json")


def test_speech_has_such_a_file_too():
    assert is_of_pictures({"image_mean": [0, 0, 0]})
    assert is_of_pictures({"image_processor_type": "SegformerImageProcessor"})
    assert not is_of_pictures({"feature_size": 1, "sampling_rate": 16000, "do_normalize": True})
    assert not is_of_pictures({"processor_class": "BertProcessor"})
