"""Tiny models and data of every task: classifier, encoders of pictures and text, any model."""

import torch
from PIL import Image

SIDE = 32
COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40)}
WORDS = ("a", "bird", "cat", "dog", "eats", "fish", "house", "in", "lives", "sees", "the", "tree")

STAGES = """
optimizer: {lr: 1.0e-3}
runtime: {batch_size: 4, save_every: 2, validate_every: 2, log_every: 1, dropout: "off"}
"""
APPLY = """
schema: dynprune/1
name: tiny-task
model: {}
apply:
  targets: [{match: 're:.*'}]
  gate: {align: 2}
  calibration: {images: 4, refit: true}
sparsity: {final: 0.5, schedule: {type: constant}}
"""
RECIPES = {
    "classification": """
data: {task: classification}
stages:
  - {name: features, steps: 2, losses: [{type: normalized_mse, on: encoder_stages}]}
  - {name: logits, steps: 2, losses: [{type: soft_ce}, {type: ce}]}
""",
    "features": """
data: {task: features, photometric: false}
stages:
  - {name: features, steps: 2, losses: [{type: normalized_mse, on: encoder_stages}]}
  - {name: tokens, steps: 2, losses: [{type: cosine, on: outputs}]}
""",
    "text": """
text: {tokens: [3, 16]}
stages:
  - {name: features, steps: 2, losses: [{type: normalized_mse, on: encoder_stages}]}
  - {name: embeddings, steps: 2, losses: [{type: cosine, on: embedding}]}
""",
    "any": """
data: {task: any}
stages:
  - {name: groups, steps: 2, losses: [{type: normalized_mse, on: group_outputs}]}
  - {name: outputs, steps: 2, losses: [{type: mse, on: outputs}, {type: mse, on: 're:read'}]}
""",
}

MODULE = """
import torch
from torch import nn


class Pairs(nn.Module):
    # Two inputs of different widths, two outputs; nothing that a library knows.
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(6, 16), nn.Linear(4, 16)
        self.write, self.read = nn.Linear(16, 48), nn.Linear(48, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, left, right):
        x = torch.tanh(self.left(left) + self.right(right))
        x = x + self.read(torch.relu(self.write(x)))
        return {"hidden": x, "logits": self.head(x)}


def make():
    torch.manual_seed(0)
    return Pairs()


def calls(split):
    random = torch.Generator().manual_seed({"train": 0, "val": 1}[split])
    for size in (3, 5, 4):
        left = torch.randn(size, 6, generator=random)
        right = torch.randn(size, 4, generator=random)
        yield {"left": left, "right": right}, torch.randint(0, 3, (size,), generator=random)


def nothing():
    return []


def some_labels():
    yield {"left": torch.zeros(1, 6), "right": torch.zeros(1, 4)}, torch.zeros(1)
    yield {"left": torch.zeros(1, 6), "right": torch.zeros(1, 4)}


def broken():
    yield {"left": torch.zeros(1, 6), "right": torch.zeros(1, 4)}
    raise RuntimeError("the disk is gone")
"""


def write_pictures(root, classes=True):
    """Write pictures of three colours with noise, a folder a class or all in one."""
    random = torch.Generator().manual_seed(0)
    for split, count in (("train", 6), ("val", 3)):
        for name, colour in COLOURS.items():
            for index in range(count):
                noise = torch.randn(40, 48, 3, generator=random) * 40
                pixels = (noise + torch.tensor(colour)).clamp(0, 255).to(torch.uint8)
                folder = root / split / name if classes else root / split
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.numpy()).save(folder / f"{name}{index}.png")
    return root


def write_classifier(directory, labels=3):
    """Write a tiny random ViT that tells three classes apart."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(**_vit(), num_labels=labels)
    ViTForImageClassification(config).save_pretrained(directory)
    return directory


def write_encoder(directory):
    """Write a tiny random DINOv2."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(**{**_vit(), "mlp_ratio": 2})
    Dinov2Model(config).save_pretrained(directory)
    return directory


def _vit():
    return {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": SIDE,
        "patch_size": 8,
        "initializer_range": 0.3,
    }


def write_text_encoder(directory):
    """Write a tiny random BERT with a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = {word: index for index, word in enumerate([*special, *WORDS])}
    own = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, pad_token="[PAD]", unk_token="[UNK]")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def write_text(path, sentences=30):
    """Write a text file of random sentences of the tokenizer's words."""
    random = torch.Generator().manual_seed(0)
    lines = []
    for index in range(sentences):
        chosen = torch.randint(0, len(WORDS), (3 + index % 5,), generator=random).tolist()
        lines.append(" ".join(WORDS[i] for i in chosen))
    path.write_text("\n".join(lines) + "\n")
    return path
