"""Tiny transformers checkpoints on disk."""

from pathlib import Path

import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation

SEGFORMER = {
    "model_type": "segformer",
    "depths": [1, 1],
    "num_encoder_blocks": 2,
    "hidden_sizes": [8, 16],
    "num_attention_heads": [1, 2],
    "decoder_hidden_size": 8,
    "sr_ratios": [2, 1],
    "patch_sizes": [7, 3],
    "strides": [4, 2],
    "mlp_ratios": [2, 2],
}


def write_segformer(directory: Path, *, dtype=torch.float32, **config):
    """Write a SegFormer of two stages and give it back."""
    torch.manual_seed(5)
    model = SegformerForSemanticSegmentation(SegformerConfig(**{**SEGFORMER, **config}))
    model.to(dtype).save_pretrained(directory)
    return model
