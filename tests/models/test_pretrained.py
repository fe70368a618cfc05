import json
import socket

import pytest
import torch
import transformers
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from dynprune.errors import InputError, OutputError
from dynprune.models.pretrained import (
    configuration_of,
    load_pretrained,
    read_configuration,
    write_pretrained,
)
from tests.models.tiny_checkpoints import write_segformer

WEIGHTS = "model.safetensors"
LAST = "decode_head.classifier.bias"


@pytest.fixture
def directory(tmp_path):
    write_segformer(tmp_path / "model")
    return tmp_path / "model"


def rewrite(directory, change):
    weights = load_file(directory / WEIGHTS)
    change(weights)
    save_file(weights, directory / WEIGHTS, metadata={"format": "pt"})


def test_a_model_is_written_and_read_with_identical_bits(directory, tmp_path):
    model = load_pretrained(str(directory))
    write_pretrained(model, tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["config.json", WEIGHTS]
    again = load_pretrained(str(tmp_path / "copy"))
    for one, two in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(OutputError, match="not empty"):
        write_pretrained(model, tmp_path / "copy")


def test_loading_prints_nothing(directory, capfd):
    load_pretrained(str(directory))
    assert capfd.readouterr() == ("", "")


def test_missing_weights_are_refused(directory):
    (directory / WEIGHTS).unlink()
    with pytest.raises(InputError, match=rf"weights missing: .*{WEIGHTS} does not exist"):
        load_pretrained(str(directory))
    (directory / "pytorch_model.bin").touch()
    with pytest.raises(InputError, match="convert it to safetensors"):
        load_pretrained(str(directory))


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_weights_are_refused(directory, kept):
    whole = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(whole[:kept])
    with pytest.raises(InputError, match=rf"{WEIGHTS} is truncated or no safetensors file"):
        load_pretrained(str(directory))


def test_a_parameter_that_is_not_in_the_file_is_refused_by_name(directory):
    rewrite(directory, lambda weights: weights.pop(LAST))
    with pytest.raises(InputError, match=rf"1 missing \({LAST}\)"):
        load_pretrained(str(directory))


def test_a_parameter_of_another_shape_is_refused(directory):
    rewrite(directory, lambda weights: weights.update({LAST: torch.zeros(3)}))
    with pytest.raises(InputError, match=r"cannot be read|of another shape"):
        load_pretrained(str(directory))


def test_a_missing_shard_is_refused(directory):
    index = {"metadata": {}, "weight_map": {LAST: "model-00001-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"model-00001-of-00002\.safetensors does not exist"):
        load_pretrained(str(directory))
    (directory / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(InputError, match="no index of weights"):
        load_pretrained(str(directory))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no config.json"),
        ("{", "the configuration of .* cannot be read"),
        ('{"model_type": "zork"}', "the configuration of .* cannot be read"),
        ('{"model_type": "segformer", "architectures": ["os"]}', "no model class of transformers"),
    ],
)
def test_a_configuration_that_names_no_model_is_refused(directory, content, message):
    (directory / "config.json").unlink()
    if content is not None:
        (directory / "config.json").write_text(content)
    with pytest.raises(InputError, match=message):
        load_pretrained(str(directory))


def test_a_hub_name_offline_is_refused_at_once_with_what_to_do(monkeypatch):
    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    for offline in (True, False):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        with pytest.raises(
            InputError, match=r"'owner/absent'.*cannot be reached; give a directory"
        ):
            load_pretrained("owner/absent")


def test_a_configuration_names_its_class_and_nothing_of_this_machine(directory):
    record = read_configuration(str(directory))
    assert record == configuration_of(load_pretrained(str(directory)))
    assert record["architectures"] == ["SegformerForSemanticSegmentation"]
    assert str(directory) not in json.dumps(record)
    assert configuration_of(torch.nn.Identity()) is None


def test_what_the_cache_does_not_hold_is_asked_of_the_hub(directory, monkeypatch):
    asked = []

    def kind(cls, found):
        original = cls.from_pretrained

        def from_pretrained(name, **arguments):
            asked.append((found, arguments["local_files_only"]))
            if arguments["local_files_only"]:
                raise OSError("not in the cache")
            return original(directory, **arguments)

        monkeypatch.setattr(cls, "from_pretrained", from_pretrained)

    kind(transformers.AutoConfig, "configuration")
    kind(transformers.SegformerForSemanticSegmentation, "weights")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [])
    load_pretrained("owner/name")
    assert asked == [
        ("configuration", True),
        ("configuration", False),
        ("weights", True),
        ("weights", False),
    ]
