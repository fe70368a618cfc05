"""What is declared is checked before memory is taken for it."""

import json
import struct
import tracemalloc

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dynprune.errors import InputError
from dynprune.models.limits import check_architecture, check_numbers, read_header
from dynprune.models.pretrained import build_architecture, load_pretrained

SEGFORMER = "SegformerForSemanticSegmentation"


def test_a_header_tells_what_the_file_holds(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7)}, path)
    header = read_header(path)
    assert (header.elements, header.widest) == (3 * 5 + 7, 7)


@pytest.mark.parametrize("length", [0, 2**20, 2**40, 2**63 - 1, 2**64 - 1])
def test_a_forged_length_is_refused(tmp_path, length):
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(InputError, match="truncated"):
        read_header(path)


def test_a_forged_shape_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    entry = {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}
    header = json.dumps({"a": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 64)
    with pytest.raises(InputError, match="truncated"):
        read_header(path)


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": 2**40},
        {"depths": [2, 2, 10**9]},
        {"num_hidden_layers": 50_000},
        {"num_labels": 10**8},
        {"text_config": {"vocab_size": -(2**30)}},
        {"sizes": [[10**30]]},
    ],
)
def test_numbers_that_no_model_has_are_refused(values):
    with pytest.raises(InputError, match="is believed"):
        check_numbers(values)


def test_numbers_of_real_models_are_believed():
    check_numbers(
        {
            "hidden_size": 16_384,
            "num_hidden_layers": 126,
            "vocab_size": 262_144,
            "max_position_embeddings": 10_485_760,
            "rope_theta": 500_000.0,
            "num_labels": 21_843,
            "tie_word_embeddings": True,
            "label2id": {"stage": 149},
        }
    )


def test_an_architecture_is_judged_without_memory():
    def build():
        return nn.Sequential(nn.Linear(2**20, 2**20), nn.Linear(2**20, 4))

    tracemalloc.start()
    with pytest.raises(InputError, match="more than the file holds"):
        check_architecture(build, 2**30, "the file")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_an_architecture_without_end_is_stopped():
    def build():
        model = nn.Sequential()
        while True:
            model.append(nn.Identity())

    with pytest.raises(InputError, match="modules"):
        check_architecture(build, 10, "the file")


def test_an_architecture_that_fits_is_let_through_and_tied_weights_count_once():
    def build():
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        model[1].weight = model[0].weight
        return model

    check_architecture(build, 8 * 8 + 8 + 8, "the file")
    with pytest.raises(InputError):
        check_architecture(build, 8 * 8 + 8 + 7, "the file")
    check_architecture(lambda: 1 / 0, 0, "one that cannot be built here is not judged")


def test_a_configuration_asks_for_no_more_than_the_machine_or_the_file_holds(tmp_path):
    huge = {"model_type": "segformer", "hidden_sizes": [32, 64, 160, 2**28]}
    with pytest.raises(InputError, match="this machine's memory"):
        build_architecture(SEGFORMER, huge)
    save_file({"a": torch.zeros(3)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    text = json.dumps({**huge, "architectures": [SEGFORMER], "hidden_sizes": [32, 64, 160, 4096]})
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match="its weights' file"):
        load_pretrained(str(tmp_path))


def test_an_index_names_no_file_outside_of_its_directory(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": {"a": "../elsewhere.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="outside of"):
        load_pretrained(str(tmp_path))
