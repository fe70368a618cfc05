import pytest
import torch
from torch import nn

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.models import ModelSource, build, load_model
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


WAV2VEC2 = {**SMALL, "model_type": "wav2vec2", "conv_dim": (8, 8), "conv_kernel": (10, 3),
            "conv_stride": (5, 2), "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2}  # fmt: skip
CARRYING = {
    **MODELS,
    "Wav2Vec2Model": WAV2VEC2,
    "TimeSeriesTransformerModel": {
        "model_type": "time_series_transformer",
        "prediction_length": 4,
        "context_length": 8,
    },
}


def carrying(architecture, given):
    model = build(ModelSource("transformers", architecture, CARRYING[architecture]))
    model.example_input_array = given
    return model


@pytest.mark.parametrize(
    ("architecture", "given"),
    [
        ("SegformerForSemanticSegmentation", torch.randn(2, 3, 64, 32)),
        ("SegformerForSemanticSegmentation", (torch.randn(2, 3, 64, 32),)),
        ("SegformerForSemanticSegmentation", {"pixel_values": torch.randn(2, 3, 64, 32)}),
        ("BertModel", {"input_ids": torch.randint(0, 60, (2, 5))}),
        ("BertModel", Example((torch.randint(0, 60, (2, 5)),))),
        ("Wav2Vec2Model", {"input_values": torch.randn(1, 400)}),
        ("Wav2Vec2Model", [torch.randn(1, 400)]),
    ],
)
def test_a_model_of_transformers_is_called_with_the_example_that_it_carries(architecture, given):
    model = carrying(architecture, given)
    (tensor,) = example_of(model).tensors
    leaf = given.tensors[0] if isinstance(given, Example) else given
    leaf = next(iter(leaf.values())) if isinstance(leaf, dict) else leaf
    assert tensor is (leaf if torch.is_tensor(leaf) else leaf[0])
    with torch.no_grad():
        example_of(model).run(model)


def test_sound_is_made_of_the_shape_that_is_asked_for():
    model = carrying("Wav2Vec2Model", None)
    assert example_of(model).kwargs["input_values"].shape == (1, 16000)
    assert example_of(model, (2, 500)).kwargs["input_values"].shape == (2, 500)


def test_another_shape_keeps_the_way_in_which_the_example_is_passed():
    model = nn.Linear(5, 2)
    model.example_input_array = {"input": torch.ones(3, 5)}
    assert example_of(model, (7, 5)).kwargs["input"].shape == (7, 5)
    words = nn.Embedding(20, 4)
    words.example_input_array = torch.randint(0, 20, (1, 6))
    more = example_of(words, (3, 6)).args[0]  # ids stay ids
    assert more.shape == (3, 6)
    assert more.dtype == torch.int64


def test_a_shape_that_a_carried_example_cannot_have_is_refused_with_both():
    model = nn.Embedding(20, 4)
    model.example_input_array = torch.randint(0, 20, (1, 6))
    with pytest.raises(UsageError, match=r"input shape \[1, 3, 8, 8\] .*shapes \[\[1, 6\]\]"):
        example_of(model, (1, 3, 8, 8))


@pytest.mark.parametrize("given", ["word", 7, (), {}, {"a": None}])
def test_what_is_no_call_is_refused_by_its_name(given):
    model = nn.Linear(5, 2)
    model.example_input_array = given
    with pytest.raises(UsageError, match=r"example_input_array of Linear .* holds no tensor"):
        example_of(model)


def test_a_model_of_unknown_input_is_told_how_to_bring_an_example():
    model = carrying("TimeSeriesTransformerModel", None)
    with pytest.raises(UsageError, match=r"takes 'past_values'.*model\.example_input_array"):
        example_of(model)


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
