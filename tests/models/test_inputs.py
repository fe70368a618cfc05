import pytest
import torch
from torch import nn

from dynprune.errors import UsageError
from dynprune.models import load_model
from dynprune.models.inputs import example_of
from tests.models.tiny_checkpoints import SEGFORMER

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}
WHISPER = {
    "model_type": "whisper", "vocab_size": 60, "d_model": 16, "encoder_layers": 1,
    "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "num_mel_bins": 8, "max_source_positions": 10,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
T5 = {"model_type": "t5", "vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": 8, "num_layers": 1}
MODELS = {
    "SegformerForSemanticSegmentation": SEGFORMER,
    "ViTForImageClassification": {"model_type": "vit", "image_size": 32, **SMALL},
    "BertModel": {"model_type": "bert", "vocab_size": 60, **SMALL},
    "T5ForConditionalGeneration": {"num_heads": 2, **T5},
    "WhisperForConditionalGeneration": WHISPER,
    "CLIPModel": {
        "model_type": "clip",
        "text_config": {"vocab_size": 60, **SMALL},
        "vision_config": {"image_size": 32, "patch_size": 8, **SMALL},
    },
}


@pytest.mark.parametrize("architecture", MODELS)
def test_the_example_of_a_transformers_model_runs(architecture):
    loaded = load_model(
        None, weights="random", architecture=architecture, config=MODELS[architecture]
    )
    with torch.no_grad():
        loaded.example.run(loaded.module)
    again = example_of(loaded.module)
    for one, two in zip(loaded.example.tensors, again.tensors, strict=True):
        assert torch.equal(one, two)


def test_a_shape_decides_the_batch_and_the_size():
    loaded = load_model(
        None,
        weights="random",
        architecture="BertModel",
        config=MODELS["BertModel"],
        input_shape=(3, 7),
    )
    assert {tuple(tensor.shape) for tensor in loaded.example.tensors} == {(3, 7)}
    assert loaded.example.kwargs.keys() == {"input_ids", "attention_mask"}


def test_pictures_go_in_by_position():
    example = example_of(nn.Conv2d(3, 4, 1), (2, 3, 8, 9))
    assert example.args[0].shape == (2, 3, 8, 9)
    assert not example.kwargs
    assert example_of(nn.Conv2d(3, 4, 1)).args[0].shape == (1, 3, 224, 224)


def test_a_model_that_carries_its_own_example_is_called_with_it():
    model = nn.Linear(5, 2)
    for given in (torch.ones(3, 5), (torch.ones(3, 5),), {"input": torch.ones(3, 5)}):
        model.example_input_array = given
        assert example_of(model).run(model).shape == (3, 2)
    assert example_of(model, (4, 5)).run(model).shape == (4, 2)


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [("BertModel", (1, 2, 3)), ("SegformerForSemanticSegmentation", (1, 20))],
)
def test_a_shape_that_the_model_does_not_take_is_refused(architecture, shape):
    with pytest.raises(UsageError, match=f"input shape .* for {architecture}"):
        load_model(
            None,
            weights="random",
            architecture=architecture,
            config=MODELS[architecture],
            input_shape=shape,
        )
