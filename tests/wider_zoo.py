"""A wider zoo: what people prune besides, from transformers' library and from papers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from dynprune.example import Example
from tests import plain_wider as plain
from tests.zoo import enliven

__all__ = ["WIDER", "Species"]


@dataclass(frozen=True)
class Species:
    """A model, and calls of it.

    Attributes:
        family: what it is for.
        build: gives the model with random weights.
        call: gives a call with so many different rows.
    """

    family: str
    build: Callable[[], nn.Module]
    call: Callable[[int], Example]

    def made(self) -> nn.Module:
        """The model in eval mode, always the same."""
        torch.manual_seed(0)
        model = self.build().eval()
        enliven(model)
        return model


_TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_WIDE = {**_TINY, "intermediate_size": 64}
_TEXT = {**_WIDE, "vocab_size": 64, "max_position_embeddings": 40, "pad_token_id": 0}
_VIT = {**_WIDE, "image_size": 32, "patch_size": 8}
_ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_LM = {**_TEXT, **_ENDS, "num_key_value_heads": 2}
_BART = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": 64,
    "max_position_embeddings": 40,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
    **_ENDS,
}


def _of(model: Any, config: Any) -> Callable[[], nn.Module]:
    return lambda: model(config)


def _ids(rows: int, length: int = 12) -> Tensor:
    return torch.randint(3, 60, (rows, length))


def _text(rows: int) -> Example:
    mask = torch.ones(rows, 12, dtype=torch.long)
    mask[rows // 2 :, -4:] = 0
    return Example((), {"input_ids": _ids(rows), "attention_mask": mask})


def _tokens(rows: int) -> Example:
    return Example((), {"input_ids": _ids(rows)})


def _two_texts(rows: int) -> Example:
    return Example((), {**_text(rows).kwargs, "decoder_input_ids": _ids(rows, 7)})


def _pixels(size: int) -> Callable[[int], Example]:
    return lambda rows: Example((), {"pixel_values": torch.randn(rows, 3, size, size)})


def _noise(*shapes: tuple[int, ...]) -> Callable[[int], Example]:
    return lambda rows: Example(tuple(torch.randn(rows, *shape) for shape in shapes))


def _picture_and_text(size: int) -> Callable[[int], Example]:
    return lambda rows: Example(
        (), {**_text(rows).kwargs, "pixel_values": torch.randn(rows, 3, size, size)}
    )


def _deberta() -> nn.Module:
    config = hf.DebertaV2Config(
        **_TEXT, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8
    )
    return hf.DebertaV2Model(config)


def _resnet(stages: int = 2) -> Any:
    return hf.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[16, 32][:stages],
        depths=[1, 1][:stages],
        layer_type="basic",
        out_features=["stage2"],
    )


def _detr() -> nn.Module:
    known = {key: _BART[key] for key in _BART if "layers" in key or "heads" in key or "ffn" in key}
    config = hf.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone_config=_resnet(),
        backbone=None,
        d_model=32,
        num_queries=5,
        num_labels=4,
        **known,
    )
    return hf.DetrForObjectDetection(config)


def _swinv2() -> nn.Module:
    config = hf.Swinv2Config(
        embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4, image_size=32, patch_size=2
    )
    return hf.Swinv2ForImageClassification(config)


def _videomae() -> nn.Module:
    return hf.VideoMAEForVideoClassification(
        hf.VideoMAEConfig(**_VIT, num_frames=4, tubelet_size=2, num_labels=5)
    )


def _ast() -> nn.Module:
    return hf.ASTForAudioClassification(
        hf.ASTConfig(**_WIDE, patch_size=8, max_length=32, num_mel_bins=16, num_labels=5)
    )


def _hubert() -> nn.Module:
    return hf.HubertModel(
        hf.HubertConfig(
            **_WIDE,
            conv_dim=(16, 16),
            conv_stride=(5, 4),
            conv_kernel=(10, 8),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
        )
    )


def _sound(rows: int) -> Example:
    mask = torch.ones(rows, 800, dtype=torch.long)
    mask[rows // 2 :, 400:] = 0
    sound = torch.randn(rows, 800) * mask
    return Example((), {"input_values": sound, "attention_mask": mask})


def _speech() -> nn.Module:
    known = {k: v for k, v in _BART.items() if k != "max_position_embeddings"}
    return hf.Speech2TextModel(
        hf.Speech2TextConfig(
            **known,
            input_feat_per_channel=8,
            conv_channels=32,
            max_source_positions=40,
            max_target_positions=40,
        )
    )


def _speech_call(rows: int) -> Example:
    mask = torch.ones(rows, 32, dtype=torch.long)
    mask[rows // 2 :, 16:] = 0
    return Example(
        (),
        {
            "input_features": torch.randn(rows, 32, 8),
            "attention_mask": mask,
            "decoder_input_ids": _ids(rows, 6),
        },
    )


def _siglip() -> nn.Module:
    text = {**_TEXT, "projection_size": 32}
    return hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=_VIT))


def _llava() -> nn.Module:
    config = hf.LlavaConfig(
        text_config=hf.LlamaConfig(**_LM),
        vision_config=hf.CLIPVisionConfig(**_VIT, projection_dim=16),
        image_token_index=63,
        vision_feature_layer=-1,
    )
    return hf.LlavaForConditionalGeneration(config)


def _llava_call(rows: int) -> Example:
    ids = torch.cat([torch.full((rows, 16), 63), _ids(rows, 8)], 1)
    return Example(
        (),
        {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": torch.randn(rows, 3, 32, 32),
        },
    )


def _vilt() -> nn.Module:
    return hf.ViltModel(hf.ViltConfig(**_VIT, vocab_size=64, max_position_embeddings=40))


def _hiera() -> nn.Module:
    config = hf.HieraConfig(
        embed_dim=16,
        image_size=[32, 32],
        patch_size=[7, 7],
        patch_stride=[4, 4],
        patch_padding=[3, 3],
        depths=[1, 1],
        num_heads=[1, 2],
        query_stride=[2, 2],
        masked_unit_size=[4, 4],
        masked_unit_attention=[True, False],
        num_query_pool=1,
        mlp_ratio=2.0,
        num_labels=4,
    )
    return hf.HieraForImageClassification(config)


def _mixtral() -> nn.Module:
    return hf.MixtralForCausalLM(
        hf.MixtralConfig(**_LM, num_local_experts=4, num_experts_per_tok=2)
    )


def _mamba() -> nn.Module:
    return hf.MambaForCausalLM(
        hf.MambaConfig(
            hidden_size=32, num_hidden_layers=2, state_size=8, vocab_size=64, expand=2, **_ENDS
        )
    )


def _t5() -> nn.Module:
    config = hf.T5Config(
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        vocab_size=64,
        decoder_start_token_id=0,
        feed_forward_proj="gated-gelu",
    )
    return hf.T5ForConditionalGeneration(config)


def _whisper() -> nn.Module:
    known = {k: v for k, v in _BART.items() if k not in ("max_position_embeddings",)}
    return hf.WhisperForConditionalGeneration(
        hf.WhisperConfig(**known, num_mel_bins=8, max_source_positions=16, max_target_positions=40)
    )


def _whisper_call(rows: int) -> Example:
    return Example(
        (), {"input_features": torch.randn(rows, 8, 32), "decoder_input_ids": _ids(rows, 6)}
    )


def _torch_padded() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def _torch_padded_call(rows: int) -> Example:
    mask = torch.zeros(rows, 10, dtype=torch.bool)
    mask[rows // 2 :, -3:] = True
    return Example((), {"src": torch.randn(rows, 10, 32), "src_key_padding_mask": mask})


def _dlrm_call(rows: int) -> Example:
    return Example((torch.randn(rows, 5), torch.randint(0, 50, (rows, 3))))


def _dit_call(rows: int) -> Example:
    steps, labels = torch.randint(0, 1000, (rows,)), torch.randint(0, 10, (rows,))
    return Example((torch.randn(rows, 4, 8, 8), steps, labels))


def _unet_call(rows: int) -> Example:
    return Example(
        (),
        {
            "sample": torch.randn(rows, 3, 16, 16),
            "timestep": torch.randint(0, 1000, (rows,)),
            "encoder_hidden_states": torch.randn(rows, 5, 12),
        },
    )


def _set_call(rows: int) -> Example:
    mask = torch.ones(rows, 9, dtype=torch.long)
    mask[rows // 2 :, 5:] = 0
    return Example((), {"points": torch.randn(rows, 9, 6), "attention_mask": mask})


def _names(*lengths: int) -> Callable[[int], Example]:
    def call(rows: int) -> Example:
        return Example(tuple(torch.randint(0, 40, (rows, n) if n else (rows,)) for n in lengths))

    return call


def _table_call(rows: int) -> Example:
    return Example((torch.randint(0, 40, (rows, 5)), torch.randn(rows, 4)))


def _graph_call(rows: int) -> Example:
    return Example((torch.randn(rows, 7, 8), (torch.rand(rows, 7, 7) > 0.5).long()))


WIDER: dict[str, Species] = {
    # Encoders of text
    "electra": Species("encoder", _of(hf.ElectraModel, hf.ElectraConfig(**_TEXT)), _text),
    "deberta_v2": Species("encoder", _deberta, _text),
    "mpnet": Species("encoder", _of(hf.MPNetModel, hf.MPNetConfig(**_TEXT)), _text),
    "modernbert": Species(
        "encoder",
        _of(hf.ModernBertModel, hf.ModernBertConfig(**_TEXT, local_attention=8)),
        _text,
    ),
    "eurobert": Species("encoder", _of(hf.EuroBertModel, hf.EuroBertConfig(**_LM)), _text),
    "fnet": Species("encoder", _of(hf.FNetModel, hf.FNetConfig(**_TEXT)), _tokens),
    "convbert": Species(
        "encoder", _of(hf.ConvBertModel, hf.ConvBertConfig(**_TEXT, embedding_size=32)), _text
    ),
    "torch_padded": Species("encoder", _torch_padded, _torch_padded_call),
    "experts": Species("encoder", plain.Experts, lambda rows: Example((_ids(rows),))),
    "gmlp": Species("encoder", plain.SpatialGating, lambda rows: Example((_ids(rows),))),
    # Decoders
    "opt": Species(
        "decoder",
        _of(
            hf.OPTForCausalLM,
            hf.OPTConfig(**_TINY, ffn_dim=64, vocab_size=64, word_embed_proj_dim=32, **_ENDS),
        ),
        _tokens,
    ),
    "gpt_neox": Species("decoder", _of(hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig(**_TEXT)), _tokens),
    "bloom": Species(
        "decoder",
        _of(
            hf.BloomForCausalLM, hf.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=64)
        ),
        _text,
    ),
    "qwen2": Species("decoder", _of(hf.Qwen2ForCausalLM, hf.Qwen2Config(**_LM)), _text),
    "gemma": Species("decoder", _of(hf.GemmaForCausalLM, hf.GemmaConfig(**_LM, head_dim=8)), _text),
    "mixtral": Species("decoder", _mixtral, _tokens),
    "mamba": Species("decoder", _mamba, _tokens),
    "tcn": Species("decoder", plain.CausalTcn, _tokens),
    "decision_transformer": Species(
        "decoder", plain.DecisionTransformer, _noise((5, 1), (5, 6), (5, 3))
    ),
    # Encoders with decoders
    "bart": Species(
        "encoder-decoder", _of(hf.BartForConditionalGeneration, hf.BartConfig(**_BART)), _two_texts
    ),
    "marian": Species(
        "encoder-decoder", _of(hf.MarianMTModel, hf.MarianConfig(**_BART)), _two_texts
    ),
    "t5_generation": Species("encoder-decoder", _t5, _two_texts),
    # Pictures
    "swinv2": Species("pictures", _swinv2, _pixels(32)),
    "hiera": Species("pictures", _hiera, _pixels(32)),
    # Detectors
    "detr": Species("detector", _detr, _pixels(64)),
    "yolos": Species(
        "detector",
        _of(
            hf.YolosForObjectDetection,
            hf.YolosConfig(
                **_WIDE, image_size=[32, 32], patch_size=8, num_detection_tokens=5, num_labels=4
            ),
        ),
        _pixels(32),
    ),
    "queries": Species("detector", plain.Detector, _pixels(32)),
    # Video
    "videomae": Species(
        "video",
        _videomae,
        lambda rows: Example((), {"pixel_values": torch.randn(rows, 4, 3, 32, 32)}),
    ),
    "timesformer": Species(
        "video",
        _of(hf.TimesformerModel, hf.TimesformerConfig(**_VIT, num_frames=4)),
        lambda rows: Example((), {"pixel_values": torch.randn(rows, 4, 3, 32, 32)}),
    ),
    "factorised_video": Species("video", plain.FactorisedVideo, _noise((4, 3, 16, 16))),
    # Sound
    "ast": Species(
        "audio", _ast, lambda rows: Example((), {"input_values": torch.randn(rows, 32, 16)})
    ),
    "hubert": Species("audio", _hubert, _sound),
    "speech_to_text": Species("audio", _speech, _speech_call),
    "whisper": Species("audio", _whisper, _whisper_call),
    "conformer": Species("audio", plain.Conformer, _noise((20, 16))),
    "crnn": Species("audio", plain.Crnn, _noise((16, 12))),
    # Several kinds of input
    "siglip": Species("multimodal", _siglip, _picture_and_text(32)),
    "vilt": Species("multimodal", _vilt, _picture_and_text(32)),
    "llava": Species("multimodal", _llava, _llava_call),
    # Recommenders
    "dlrm": Species("recommender", plain.Dlrm, _dlrm_call),
    "two_towers": Species("recommender", plain.TwoTowers, _names(0, 0)),
    "sasrec": Species("recommender", plain.SasRec, lambda rows: Example((_ids(rows),))),
    "deepfm": Species("recommender", plain.DeepFm, _names(6)),
    # Diffusion
    "dit": Species("diffusion", plain.DiT, _dit_call),
    "unet": Species("diffusion", plain.UNet, _unet_call),
    # Sets, tables, graphs, series, fields
    "perceiver": Species("sets", plain.Perceiver, _noise((20, 8))),
    "set_transformer": Species("sets", plain.SetTransformer, _set_call),
    "tab_transformer": Species("tables", plain.TabTransformer, _table_call),
    "graph_transformer": Species("graphs", plain.GraphTransformer, _graph_call),
    "patch_tst": Species("time series", plain.PatchTst, _noise((32, 3))),
    "nerf": Species("fields", plain.Nerf, _noise((10, 3), (10, 3))),
}
