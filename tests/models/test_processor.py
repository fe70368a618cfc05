"""A model's own preprocessor_config.json is found beside its weights, and travels with it."""

import json

import pytest
import torch

from dynprune.errors import InputError
from dynprune.example import Example
from dynprune.models import load_model, processor, provenance_of
from dynprune.models.processor import PROCESSOR_FILE, find_processor, read_processor_file
from dynprune.models.storage import load, save
from dynprune.pipeline import apply_recipe, restore
from dynprune.recipe import load_recipe
from tests.models.tiny_checkpoints import write_segformer

SETTINGS = {
    "image_processor_type": "SegformerImageProcessor",
    "do_resize": False,
    "image_mean": [0.1, 0.2, 0.3],
    "a key of tomorrow": {"kept": True},
}


def write(directory, values, name=PROCESSOR_FILE):
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(json.dumps(values))
    return directory


def test_it_lies_beside_the_weights_alone_or_within_a_processors_file(tmp_path):
    assert read_processor_file(write(tmp_path / "a", SETTINGS)) == SETTINGS
    nested = write(tmp_path / "b", {"image_processor": SETTINGS}, "processor_config.json")
    assert find_processor(str(nested)) == SETTINGS
    assert read_processor_file(tmp_path) is None


def test_that_of_speech_is_none_of_pictures(tmp_path):
    assert read_processor_file(write(tmp_path / "a", {"sampling_rate": 16000})) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot be read"), ("[1]", "holds list"), (" " * (1 << 21), "is larger")],
)
def test_a_damaged_file_is_refused(tmp_path, text, message):
    (tmp_path / PROCESSOR_FILE).write_text(text)
    with pytest.raises(InputError, match=f"{PROCESSOR_FILE} {message}"):
        read_processor_file(tmp_path)


def test_of_a_hub_name_it_is_taken_from_the_cache(tmp_path, monkeypatch):
    cached = write(tmp_path / "snapshot", SETTINGS)

    def look_up(name, file):
        return str(cached / file) if (cached / file).is_file() else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", look_up)
    monkeypatch.setattr(processor, "hub_is_reachable", lambda: False)
    assert find_processor("somebody/model") == SETTINGS
    (cached / PROCESSOR_FILE).unlink()
    assert find_processor("somebody/model") is None


def test_it_travels_with_the_model_through_every_save(tmp_path):
    write_segformer(tmp_path / "dense")
    write(tmp_path / "dense", SETTINGS)
    loaded = load_model(str(tmp_path / "dense"))
    assert loaded.processor == SETTINGS
    loaded = load_model(str(tmp_path / "dense"), input_shape=(1, 3, 64, 64))
    gated = apply_recipe(loaded, load_recipe("any", ["sparsity.final=0.5", "apply.gate.align=2"]))
    save(gated, tmp_path / "gated")
    assert json.loads((tmp_path / "gated" / PROCESSOR_FILE).read_text()) == SETTINGS
    again = load(tmp_path / "gated")
    assert provenance_of(again).processor == SETTINGS
    save(restore(again), tmp_path / "restored")
    assert load_model(str(tmp_path / "restored")).processor == SETTINGS
    assert isinstance(loaded.example, Example)
    assert torch.is_tensor(loaded.example.tensors[0])


def test_a_model_that_was_loaded_by_transformers_itself_brings_it_too(tmp_path):
    from transformers import SegformerForSemanticSegmentation

    import dynprune

    write_segformer(tmp_path / "dense")
    write(tmp_path / "dense", SETTINGS)
    model = SegformerForSemanticSegmentation.from_pretrained(tmp_path / "dense").eval()
    recipe = load_recipe("any", ["sparsity.final=0.5", "apply.gate.align=2"])
    dynprune.apply(model, torch.randn(1, 3, 64, 64), recipe)
    dynprune.save(model, tmp_path / "gated")
    assert load_model(str(tmp_path / "gated")).processor == SETTINGS
