"""A tiny SegFormer, its recipe and its data, and a way to run a command in this process."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from dynprune.cli.main import app
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.tiny_recipe import CLASSES, HEIGHT, MODEL, WIDTH

RECIPE = f"""{MODEL}sparsity: {{final: 0.5, schedule: {{end_step: 2}}}}
penalties: [{{type: gate_l1, weight: 1.0e-6}}]
data: {{crop: [16, 16], classes: {CLASSES}}}
stages:
  - {{name: features, steps: 2, losses: [{{type: mse}}]}}
  - {{name: logits, steps: 2, losses: [{{type: ce}}, {{type: soft_ce}}]}}
optimizer: {{lr: 1.0e-3}}
runtime: {{batch_size: 2, save_every: 2, validate_every: 2, log_every: 1}}
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self):
        """The one JSON document on stdout."""
        return json.loads(self.out)


@pytest.fixture
def run():
    """Run a command and give its exit code and both streams."""

    def call(*arguments, code=0):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        outcome = Outcome(result.exit_code, result.stdout, result.stderr)
        assert outcome.code == code, f"{outcome}\n{result.exc_info}"
        return outcome

    return call


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A directory for everything that is made once."""
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="session")
def recipe(shared):
    path = shared / "tiny.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def dense(shared):
    """A transformers directory with a tiny SegFormer."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    from dynprune.recipe import parse_recipe

    torch.manual_seed(0)
    config = dict(parse_recipe(RECIPE).model.config)
    config.pop("model_type")
    model = SegformerForSemanticSegmentation(SegformerConfig(**config))
    model.save_pretrained(shared / "dense")
    return shared / "dense"


@pytest.fixture(scope="session")
def data(shared):
    """A folder data set of noise."""
    root = shared / "data"
    random = torch.Generator().manual_seed(0)
    for split, count in (("train", 4), ("val", 2)):
        (root / "images" / split).mkdir(parents=True)
        (root / "annotations" / split).mkdir(parents=True)
        for index in range(count):
            picture = torch.randint(0, 256, (HEIGHT, WIDTH, 3), generator=random)
            label = torch.randint(0, CLASSES, (HEIGHT, WIDTH), generator=random)
            save(root / "images" / split / f"{index}.png", picture)
            save(root / "annotations" / split / f"{index}.png", label)
    (root / "classes.txt").write_text("sky\nsea\nland\n")
    return root


def same_weights(one: Path, other: Path) -> bool:
    """Whether two directories hold the same tensors, bit for bit; a header's order is free."""
    first, second = (load_file(path / "model.safetensors") for path in (one, other))
    return first.keys() == second.keys() and all(first[n].equal(second[n]) for n in first)


def save(path: Path, pixels: torch.Tensor) -> None:
    Image.fromarray(pixels.to(torch.uint8).numpy()).save(path)


@pytest.fixture(scope="session")
def gated(shared, dense, recipe, data):
    """What `dynprune apply` wrote."""
    output = shared / "gated"
    arguments = ["apply", str(dense), "--recipe", str(recipe), "--data", str(data)]
    result = CliRunner().invoke(app, [*arguments, "-o", str(output), "--json"])
    assert result.exit_code == 0, result.output
    return output
