"""A zoo of small random models with the neuron groups that each must show."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import nn

from dynprune.example import Example
from dynprune.rewrite import rewrite
from tests import plain_models as plain

#: (kind, neurons, heads) -> how many such groups.
Census = dict[tuple[str, int, int], int]


@dataclass(frozen=True)
class Animal:
    """A model and what must be found in it.

    Attributes:
        build: gives the model with random weights.
        example: gives one call.
        groups: the candidates.
        refused: how many groups are shown with a reason.
        causal: the candidates that must not see the future: "all", "none", or a prefix of names.
        rewrites: made first, as `dynprune inspect` does.
    """

    build: Callable[[], nn.Module]
    example: Callable[[], Example]
    groups: Census
    refused: int = 0
    causal: str = "none"
    rewrites: tuple[str, ...] = ()

    def published(self) -> nn.Module:
        """The model in eval mode, before any rewrite, always the same."""
        torch.manual_seed(0)
        model = self.build().eval()
        enliven(model)
        return model

    def made(self) -> tuple[nn.Module, Example]:
        """The model in eval mode, and one call, always the same."""
        model, example = self.published(), self.example()
        for record in rewrite(model, example, self.rewrites):
            assert record.reason is None, record
        return model, example


def enliven(model: nn.Module) -> None:
    """Draw weights in place so that signals keep their size: a fresh init may end in zeros."""
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            if parameter.dim() > 1:
                gain = 2.0 if parameter.dim() > 2 else 1.0  # Convolutional nets lack residuals.
                parameter.copy_(noise * gain / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(noise, alpha=0.3)


def _image(size: int) -> Callable[[], Example]:
    return lambda: Example((torch.randn(1, 3, size, size),))


def _pixels(size: int) -> Callable[[], Example]:
    return lambda: Example((), {"pixel_values": torch.randn(1, 3, size, size)})


def _tokens(length: int = 12) -> Callable[[], Example]:
    return lambda: Example((), {"input_ids": torch.randint(1, 60, (1, length))})


def _text(length: int = 12) -> Callable[[], Example]:
    def make() -> Example:
        mask = torch.ones(1, length, dtype=torch.long)
        mask[:, -3:] = 0
        return Example((), {"input_ids": torch.randint(2, 60, (1, length)), "attention_mask": mask})

    return make


_TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_VIT = {**_TINY, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
_BERT = {**_TINY, "intermediate_size": 64, "vocab_size": 64, "max_position_embeddings": 40}
_LLAMA = {
    **_TINY,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 64,
    "use_cache": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
#: Torch's own attention with its packed projections taken apart.
UNPACKED = ("unpack-attention",)

_BLOCKS: Census = {("qk", 32, 4): 2, ("v", 32, 4): 2, ("ffn", 64, 0): 2}


def _transformers(model: Any, config: Any) -> Callable[[], nn.Module]:
    return lambda: model(config)


def _segformer() -> nn.Module:
    config = hf.SegformerConfig(
        hidden_sizes=[16, 32, 48, 64],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 3, 4],
        mlp_ratios=[2, 2, 2, 2],
        decoder_hidden_size=32,
        num_labels=5,
    )
    return hf.SegformerForSemanticSegmentation(config)


def _pvt_v2() -> nn.Module:
    config = hf.PvtV2Config(
        hidden_sizes=[16, 32, 32, 64],
        num_attention_heads=[1, 2, 2, 4],
        depths=[1, 1, 1, 1],
        mlp_ratios=[2, 2, 2, 2],
        image_size=64,
    )
    return hf.PvtV2ForImageClassification(config)


def _swin() -> nn.Module:
    config = hf.SwinConfig(
        embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, image_size=32, patch_size=2
    )
    return hf.SwinForImageClassification(config)


def _clip() -> nn.Module:
    config = hf.CLIPConfig(
        text_config={**_BERT, "eos_token_id": 63, "projection_dim": 16},
        vision_config={**_VIT, "projection_dim": 16},
        projection_dim=16,
    )
    return hf.CLIPModel(config)


def _clip_call() -> Example:
    ids = torch.cat([torch.randint(3, 60, (1, 9)), torch.tensor([[63]])], 1)
    return Example((), {"input_ids": ids, "pixel_values": torch.randn(1, 3, 32, 32)})


def _dpt() -> nn.Module:
    config = hf.DPTConfig(
        **_VIT | {"num_hidden_layers": 4},
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
        use_auxiliary_head=False,
        num_labels=5,
        is_hybrid=False,
    )
    return hf.DPTForSemanticSegmentation(config)


def _t5() -> nn.Module:
    config = hf.T5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=64, use_cache=False
    )
    return hf.T5EncoderModel(config)


def _t5_whole() -> nn.Module:
    config = hf.T5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4, vocab_size=64, use_cache=False
    )
    return hf.T5Model(config)


def _two_texts() -> Example:
    return Example(
        (),
        {
            "input_ids": torch.randint(2, 60, (1, 10)),
            "decoder_input_ids": torch.randint(2, 60, (1, 8)),
        },
    )


def _whisper() -> nn.Module:
    config = hf.WhisperConfig(
        d_model=32,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_mel_bins=8,
        max_source_positions=16,
        vocab_size=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return hf.WhisperModel(config).encoder


def _wav2vec2() -> nn.Module:
    config = hf.Wav2Vec2Config(
        **_TINY,
        intermediate_size=64,
        conv_dim=(16, 16),
        conv_stride=(5, 4),
        conv_kernel=(10, 8),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    return hf.Wav2Vec2Model(config)


def _mobilevit() -> nn.Module:
    config = hf.MobileViTConfig(
        hidden_sizes=[24, 32, 32],
        neck_hidden_sizes=[8, 8, 12, 16, 16, 16, 32],
        num_attention_heads=4,
        image_size=64,
        expand_ratio=2.0,
        output_stride=32,
    )
    return hf.MobileViTForImageClassification(config)


def _convnext() -> nn.Module:
    config = hf.ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, image_size=32)
    return hf.ConvNextForImageClassification(config)


def _torch_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


def _torch_transformer() -> nn.Module:
    return nn.Transformer(32, 4, 1, 1, 64, batch_first=True)


def _torch_transformer_call() -> Example:
    mask = nn.Transformer.generate_square_subsequent_mask(8)
    both = {"src": torch.randn(1, 10, 32), "tgt": torch.randn(1, 8, 32)}
    return Example((), {**both, "tgt_mask": mask, "tgt_is_causal": True})


ZOO: dict[str, Animal] = {
    "segformer": Animal(
        _segformer,
        _pixels(64),
        {
            **{(kind, n, n // 16): 1 for kind in ("qk", "v") for n in (16, 32, 48, 64)},
            **{("ffn", n, 0): 1 for n in (64, 96, 128)},
            ("ffn", 32, 0): 6,  # The first stage's, and the head's five.
        },
    ),
    "pvt_v2": Animal(
        _pvt_v2,
        _pixels(64),
        {
            **{(kind, 16, 1): 1 for kind in ("qk", "v")},
            **{(kind, 32, 2): 2 for kind in ("qk", "v")},
            **{(kind, 64, 4): 1 for kind in ("qk", "v")},
            **{("ffn", 32, 0): 1, ("ffn", 64, 0): 2, ("ffn", 128, 0): 1},
        },
    ),
    "vit": Animal(
        _transformers(hf.ViTForImageClassification, hf.ViTConfig(**_VIT)), _pixels(32), _BLOCKS
    ),
    "deit": Animal(
        _transformers(hf.DeiTForImageClassification, hf.DeiTConfig(**_VIT)), _pixels(32), _BLOCKS
    ),
    "dinov2": Animal(
        _transformers(hf.Dinov2Model, hf.Dinov2Config(**_VIT, mlp_ratio=2)), _pixels(32), _BLOCKS
    ),
    "dinov2_swiglu": Animal(
        _transformers(hf.Dinov2Model, hf.Dinov2Config(**_VIT, mlp_ratio=3, use_swiglu_ffn=True)),
        _pixels(32),
        _BLOCKS,
    ),
    "swin": Animal(
        _swin,
        _pixels(32),
        {
            **{(kind, n, n // 8): 2 for kind in ("qk", "v") for n in (16, 32)},
            **{("ffn", n, 0): 2 for n in (64, 128)},
        },
    ),
    "beit": Animal(
        _transformers(hf.BeitForImageClassification, hf.BeitConfig(**_VIT, vocab_size=64)),
        _pixels(32),
        _BLOCKS,
    ),
    "clip": Animal(
        _clip,
        _clip_call,
        {group: 2 * count for group, count in _BLOCKS.items()},
        refused=1,  # The two projections, which meet in the logits.
        causal="text_model",
    ),
    "dpt": Animal(
        _dpt,
        _pixels(32),
        {**dict.fromkeys(_BLOCKS, 4), ("ffn", 32, 0): 4},  # Four readout projections.
        refused=5,  # 1x1 projections read by wide convolutions.
    ),
    "bert": Animal(
        _transformers(hf.BertForSequenceClassification, hf.BertConfig(**_BERT)),
        _text(),
        {**_BLOCKS, ("ffn", 32, 0): 1},  # The pooler.
    ),
    "roberta": Animal(
        _transformers(hf.RobertaForMaskedLM, hf.RobertaConfig(**_BERT)),
        _text(),
        _BLOCKS,
        refused=1,  # The head's LayerNorm.
    ),
    "distilbert": Animal(
        _transformers(
            hf.DistilBertModel,
            hf.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, vocab_size=64),
        ),
        _text(),
        _BLOCKS,
    ),
    "albert": Animal(
        _transformers(hf.AlbertModel, hf.AlbertConfig(**_BERT, embedding_size=16)),
        _text(),
        {},
        refused=3,  # One layer, called twice.
    ),
    "t5_encoder": Animal(_t5, _text(), _BLOCKS),
    "t5": Animal(
        _t5_whole,
        _two_texts,
        {("qk", 32, 4): 3, ("v", 32, 4): 3, ("ffn", 64, 0): 2},
        causal="decoder",
    ),
    "whisper_encoder": Animal(_whisper, lambda: Example((torch.randn(1, 8, 32),)), _BLOCKS),
    "wav2vec2": Animal(_wav2vec2, lambda: Example((torch.randn(1, 800),)), _BLOCKS),
    "mobilevit": Animal(
        _mobilevit,
        _pixels(128),
        {
            **{(kind, 24, 4): 2 for kind in ("qk", "v")},
            **{(kind, 32, 4): 7 for kind in ("qk", "v")},
            **{("ffn", 48, 0): 2, ("ffn", 64, 0): 7},
            **{("ffn", 16, 0): 2, ("ffn", 24, 0): 3, ("ffn", 32, 0): 3},  # Inverted residuals.
        },
        refused=7,
    ),
    "llama": Animal(
        _transformers(hf.LlamaForCausalLM, hf.LlamaConfig(**_LLAMA)),
        _tokens(),
        {("qk", 8, 2): 2, ("v", 16, 2): 2, ("ffn", 64, 0): 2},  # Two key heads, rotary pairs.
        causal="all",
    ),
    "phi3": Animal(
        _transformers(hf.Phi3ForCausalLM, hf.Phi3Config(**_LLAMA)),
        _tokens(),
        {("qk", 8, 2): 2, ("v", 16, 2): 2, ("ffn", 64, 0): 2},  # Two key heads, rotary pairs.
        causal="all",
    ),
    "gpt2": Animal(
        _transformers(
            hf.GPT2LMHeadModel,
            hf.GPT2Config(
                n_embd=32,
                n_layer=2,
                n_head=4,
                n_inner=64,
                vocab_size=64,
                n_positions=40,
                use_cache=False,
                bos_token_id=1,
                eos_token_id=2,
            ),
        ),
        _tokens(),
        _BLOCKS,
        causal="all",
    ),
    "convnext": Animal(_convnext, _pixels(32), {("ffn", 64, 0): 1, ("ffn", 128, 0): 1}),
    "torch_encoder": Animal(
        _torch_encoder,
        lambda: Example((torch.randn(1, 10, 32),)),
        _BLOCKS,
        rewrites=UNPACKED,
    ),
    "torch_transformer": Animal(
        _torch_transformer,
        _torch_transformer_call,
        {("qk", 32, 4): 3, ("v", 32, 4): 3, ("ffn", 64, 0): 2},
        causal="decoder",
        rewrites=UNPACKED,
    ),
    "packed_encoder": Animal(
        _torch_encoder,
        lambda: Example((torch.randn(1, 10, 32),)),
        {("ffn", 64, 0): 2},
        refused=4,  # Packed projections, not rewritten.
    ),
    "mlp_mixer": Animal(plain.MlpMixer, _image(32), {("ffn", 24, 0): 2, ("ffn", 48, 0): 2}),
    "fused_vit": Animal(plain.FusedViT, _image(32), _BLOCKS),
    "fused_pvt": Animal(
        plain.FusedPvt,
        _image(64),
        {
            **{(kind, 16, 1): 1 for kind in ("qk", "v")},
            **{(kind, 32, 4): 1 for kind in ("qk", "v")},
            **{("ffn", 32, 0): 1, ("ffn", 64, 0): 1},
        },
    ),
    "mmseg_segformer": Animal(
        plain.MmSegformer,
        _image(32),
        {("qk", 32, 2): 1, ("v", 32, 2): 1, ("ffn", 128, 0): 1},
        rewrites=UNPACKED,
    ),
    "rotary_encoder": Animal(
        plain.RotaryEncoder,
        lambda: Example((torch.randint(1, 60, (1, 10)),)),
        {("qk", 16, 4): 1, ("v", 32, 4): 1, ("ffn", 64, 0): 1},  # Pairs that turn together.
    ),
    "conv1x1_convnext": Animal(plain.ConvNeXt, _image(32), {("ffn", 64, 0): 2}),
}


def census(groups: Any) -> Census:
    """Count groups by kind, neurons and heads."""
    return dict(Counter((g.kind, g.neurons, g.heads) for g in groups))
