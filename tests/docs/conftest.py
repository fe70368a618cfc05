"""A tiny data set, model and recipe for pages that show commands at work, and blocks of pages."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.tiny_recipe import CLASSES, MODEL

FOLDER = Path(__file__).parents[2] / "docs"
RECIPE = f"""{MODEL}sparsity: {{final: 0.5, schedule: {{end_step: 1}}}}
data: {{crop: [16, 16], classes: {CLASSES}}}
stages: [{{name: logits, steps: 2, losses: [{{type: ce}}, {{type: soft_ce}}]}}]
optimizer: {{lr: 1.0e-3}}
runtime: {{batch_size: 2, save_every: 2, validate_every: 2, log_every: 1}}
"""


@dataclass(frozen=True)
class Block:
    """A block of code of a page.

    Attributes:
        page: the page, below ``docs/``.
        line: of its first line of code, from 1.
        language: of the fence; ``text`` for an indented block.
        code: what is in it.
        reason: why it is not run, where the page says so in a comment before it; else ``None``.
    """

    page: str
    line: int
    language: str
    code: str
    reason: str | None


_FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+?) -->\n\n?)?"
    r"^(?P<fence>```+)(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=fence)$",
    flags=re.DOTALL | re.MULTILINE,
)


def blocks_of(text, page):
    """Every fenced block of a page, in order."""
    return [
        Block(
            page,
            text.count("\n", 0, found.start("code")) + 1,
            found["language"],
            found["code"],
            found["reason"],
        )
        for found in _FENCE.finditer(text)
    ]


@pytest.fixture(scope="session")
def pages():
    """Every page that is written by hand or generated: its path below docs/, and its text."""
    paths = sorted(FOLDER.rglob("*.md"))
    return {path.relative_to(FOLDER).as_posix(): path.read_text("utf-8") for path in paths}


@pytest.fixture(scope="session")
def blocks(pages):
    """Every fenced block of every page."""
    return [block for page, text in pages.items() for block in blocks_of(text, page)]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A directory, which is the current one, with a recipe and a data set."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    random = torch.Generator().manual_seed(0)
    for split in ("train", "val"):
        for index in range(2):
            image = torch.randint(0, 256, (32, 48, 3), generator=random, dtype=torch.uint8)
            label = torch.randint(0, CLASSES, (32, 48), generator=random, dtype=torch.uint8)
            for kind, pixels in (("images", image), ("annotations", label)):
                path = tmp_path / "data" / kind / split / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.numpy()).save(path)
    return tmp_path
