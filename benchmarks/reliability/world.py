"""A tiny model with its recipe and its data: a command on it takes a fraction of a second."""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

__all__ = ["World", "make_world"]

HEIGHT, WIDTH, CLASSES = 32, 48, 3

RECIPE = f"""schema: dynprune/1
name: tiny
model:
  architecture: SegformerForSemanticSegmentation
  config:
    model_type: segformer
    num_labels: {CLASSES}
    num_encoder_blocks: 2
    depths: [1, 1]
    hidden_sizes: [8, 16]
    decoder_hidden_size: 16
    num_attention_heads: [1, 2]
    sr_ratios: [4, 2]
    mlp_ratios: [2, 2]
    patch_sizes: [7, 3]
    strides: [4, 2]
  input: [1, 3, {HEIGHT}, {WIDTH}]
rewrite: [fold-decoder]
apply:
  targets: [{{kind: qk}}, {{kind: v}}, {{kind: ffn}}]
  gate: {{align: 2}}
  calibration: {{images: 2}}
sparsity: {{final: 0.5, schedule: {{end_step: 8}}}}
penalties: [{{type: gate_l1, weight: 1.0e-6}}]
data: {{crop: [16, 16], classes: {CLASSES}}}
stages:
  - {{name: features, steps: 8, losses: [{{type: mse}}]}}
  - {{name: logits, steps: 8, losses: [{{type: ce}}, {{type: soft_ce}}]}}
optimizer: {{lr: 1.0e-3}}
runtime: {{batch_size: 2, save_every: 2, validate_every: 4, log_every: 1}}
"""


@dataclass(frozen=True)
class World:
    """The files of the tiny world.

    Attributes:
        root: directory of them all.
    """

    root: Path

    @property
    def recipe(self) -> Path:
        """A recipe for the model."""
        return self.root / "tiny.yaml"

    @property
    def dense(self) -> Path:
        """A transformers directory."""
        return self.root / "dense"

    @property
    def data(self) -> Path:
        """A folder data set."""
        return self.root / "data"

    @property
    def gated(self) -> Path:
        """What ``dynprune apply`` wrote."""
        return self.root / "gated"

    @property
    def picture(self) -> Path:
        """One picture of the data."""
        return self.data / "images" / "val" / "0.png"

    def distill(self, output: Path, *flags: str) -> list[str]:
        """Return the arguments of a distillation run into ``output``.

        One thread, whatever the process that runs it has: bits are those of one number of threads.
        """
        return [
            "distill", "--recipe", str(self.recipe), "--data", str(self.data), "--teacher",
            str(self.dense), "--device", "cpu", "--threads", "1", "-o", str(output), *flags,
        ]  # fmt: skip

    def apply(self, output: Path, *flags: str) -> list[str]:
        """Return the arguments that write a gated model to ``output``."""
        return [
            "apply", str(self.dense), "--recipe", str(self.recipe), "--data", str(self.data),
            "-o", str(output), *flags,
        ]  # fmt: skip


def make_world(root: Path) -> World:
    """Write the tiny world's files, all but the gated model."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    from dynprune.models.pretrained import write_pretrained
    from dynprune.recipe import parse_recipe

    world = World(root)
    root.mkdir(parents=True, exist_ok=True)
    world.recipe.write_text(RECIPE)
    config = dict(parse_recipe(RECIPE).model.config or {})
    config.pop("model_type")
    torch.manual_seed(0)
    write_pretrained(
        SegformerForSemanticSegmentation(SegformerConfig(**config)), world.dense, overwrite=True
    )
    random = torch.Generator().manual_seed(0)
    for split, count in (("train", 4), ("val", 2)):
        for index in range(count):
            picture = torch.randint(0, 256, (HEIGHT, WIDTH, 3), generator=random)
            label = torch.randint(0, CLASSES, (HEIGHT, WIDTH), generator=random)
            _save(world.data / "images" / split / f"{index}.png", picture)
            _save(world.data / "annotations" / split / f"{index}.png", label)
    (world.data / "classes.txt").write_text("sky\nsea\nland\n")
    return world


def _save(path: Path, pixels: torch.Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.to(torch.uint8).numpy()).save(path)
