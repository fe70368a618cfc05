"""A recipe goes before a model's own image processor, and that before what is usual."""

import pytest
import torch
from torch import nn

from dynprune.data import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    LabelValues,
    Preprocessing,
    Resize,
    open_dataset,
)
from dynprune.example import Example
from dynprune.models import LoadedModel, ModelSource
from dynprune.pipeline import calibration_calls
from dynprune.pipeline.arguments import batch_arguments
from dynprune.pipeline.pictures import picture_rules, preprocessing_of, processor_of
from dynprune.recipe import load_recipe
from tests.data.scenes import folder

OWN = {
    "image_processor_type": "SegformerImageProcessor",
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
    "size": {"height": 16, "width": 24},
    "do_reduce_labels": True,
    "do_center_crop": True,
}


class Configured(nn.Identity):
    def __init__(self, ignored):
        super().__init__()
        self.config = type("Config", (), {"semantic_loss_ignore_index": ignored})()


def rules(*overrides, own=OWN, ignored=255):
    model = Configured(ignored)
    source = ModelSource("factory", factory="a:b")
    loaded = LoadedModel(model, Example(), source, (), "m", own)
    return picture_rules(load_recipe("any", overrides) if overrides else None, loaded)


def test_without_either_pictures_go_in_as_usual_and_nothing_is_told():
    found = rules(own=None)
    assert found.preprocessing == Preprocessing(IMAGENET_MEAN, IMAGENET_STD)
    assert found.values == LabelValues()
    assert not found.notes
    assert not found.followed
    assert preprocessing_of(None) == preprocessing_of(load_recipe("any")) == Preprocessing()


def test_a_models_own_processor_is_followed_and_told_in_one_sentence():
    found = rules()
    assert found.preprocessing.mean == (0.1, 0.2, 0.3)
    assert found.preprocessing.std == (0.4, 0.5, 0.6)
    assert found.preprocessing.resize == Resize(height=16, width=24)
    assert found.values.reduce
    (note,) = found.notes
    assert note.startswith("preprocessor_config.json of m is followed: mean 0.1 0.2 0.3")
    assert "resized to 16x24" in note
    assert "label 0 is ignored" in note
    assert "not followed: do_center_crop" in note
    assert found.to_json()["from"] == "preprocessor_config.json"
    assert found.to_json()["resize"] == {"height": 16, "width": 24, "resample": "bilinear"}


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("data.mean=[0.5, 0.5, 0.5]", "mean"),
        ("data.std=[0.5, 0.5, 0.5]", "std"),
        ("data.resize=full", "size"),
        ("data.resize=[32, 48]", "size"),
        ("data.window=[8, 8]", "size"),
        ("data.reduce_labels=false", "reduce_labels"),
        ("data.label_map={255: 1}", "reduce_labels"),
    ],
)
def test_a_recipe_goes_first_in_what_it_says_and_that_is_told(override, name):
    found, own = rules(override), rules()
    assert found.notes[0].split("; not followed")[0].endswith(f"otherwise of {name}")
    changed = {key for key, value in found.to_json().items() if value != own.to_json()[key]}
    assert changed
    untouched = {"mean", "std", "resize", "reduce_labels"} - changed
    assert len(untouched) == 3


def test_a_recipe_says_what_labels_mean():
    found = rules("data.ignore_index=[0, 3]", "data.label_map={7: 2}", own=None)
    assert found.values == LabelValues(ignore=(0, 3), mapping={7: 2})
    assert rules("data.reduce_labels=true", own=None).values.reduce
    assert found.to_json()["ignore_index"] == [0, 3, 255]
    assert found.to_json()["label_map"] == {"7": 2}


def test_the_class_that_a_models_configuration_ignores_is_ignored_and_told():
    found = rules(own=None, ignored=0)
    assert found.values.ignore == (0,)
    assert "class 0 is ignored, as semantic_loss_ignore_index of m says" in found.notes[0]
    assert rules("data.ignore_index=255", own=None, ignored=0).values.ignore == (255,)
    assert rules(own=None, ignored=-100).values.ignore == (255,)


def test_of_a_module_that_nobody_knows_there_is_no_processor():
    assert processor_of(nn.Identity()) is None


def test_calibration_and_training_see_pictures_as_evaluation_does(tmp_path):
    data = open_dataset(folder(tmp_path))
    recipe = load_recipe("segformer-b0", ["apply.calibration.images=2", "data.crop=[8, 8]"])
    preprocessing = preprocessing_of(load_recipe("any"), OWN)
    calls = list(calibration_calls(data, recipe, preprocessing))
    for call, index in zip(calls, (0, 2), strict=True):
        assert torch.equal(call.args[0], preprocessing(data.picture(index)))
        assert call.args[0].shape == (1, 3, 16, 24)
    arguments = batch_arguments(recipe, preprocessing)
    assert (arguments["mean"], arguments["std"]) == (preprocessing.mean, preprocessing.std)
    assert batch_arguments(recipe)["mean"] == IMAGENET_MEAN
