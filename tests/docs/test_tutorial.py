"""The tutorial is followed word for word, with tiny pictures and a tiny teacher."""

import re
from pathlib import Path

import pytest
import torch
from dynprune.cli.main import app
from PIL import Image
from typer.testing import CliRunner

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
TEXT = PAGE.read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    dynprune (.+)$", TEXT, flags=re.MULTILINE)
# What takes hours on real pictures; everything else is as printed.
SMALLER = (
    ("steps: 1000", "steps: 2"),
    ("steps: 2000", "steps: 2"),
    ("warmup_steps: 100", "warmup_steps: 1"),
    ("images: 32", "images: 2"),
    ("crop: [320, 320]", "crop: [32, 32]"),
    ("[1, 3, 360, 480]", "[1, 3, 64, 96]"),
    ("batch_size: 4", "batch_size: 2"),
)


def write_streets(root):
    random = torch.Generator().manual_seed(0)
    for split, first in (("train", 1), ("val", 101)):
        for index in range(first, first + 2):
            picture = torch.randint(0, 256, (64, 96, 3), generator=random, dtype=torch.uint8)
            label = torch.randint(0, 3, (64, 96), generator=random, dtype=torch.uint8)
            for kind, suffix, pixels in (("images", "jpg", picture), ("annotations", "png", label)):
                path = root / kind / split / f"{index:03}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.numpy()).save(path)
    (root / "classes.txt").write_text("sky\nroad\nhouse\n")


def write_teacher(directory):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    from dynprune.models.pretrained import write_pretrained

    config = SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        hidden_sizes=[16, 32],
        sr_ratios=[4, 2],
        num_attention_heads=[1, 2],
        patch_sizes=[7, 3],
        strides=[4, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=32,
        num_labels=3,
    )
    write_pretrained(SegformerForSemanticSegmentation(config), directory)


def test_every_command_runs_after_those_before_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_streets(tmp_path / "streets")
    write_teacher(tmp_path / "teacher")
    (recipe,) = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
    for printed, tiny in SMALLER:
        assert printed in recipe
        recipe = recipe.replace(printed, tiny)
    (tmp_path / "streets.yaml").write_text(recipe)
    loading, module = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    (tmp_path / "mymodels.py").write_text(module)
    for command in COMMANDS:
        words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', command)]
        result = CliRunner().invoke(app, [word.replace("360x480", "64x96") for word in words])
        assert result.exit_code == 0, f"dynprune {command}\n{result.output}"
    names = {}
    exec(loading, names)
    assert names["model"](torch.zeros(1, 3, 64, 96)).logits.shape[1] == 3
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert (tmp_path / "run" / "README.md").is_file()
    assert (tmp_path / "streets.onnx").is_file()


PAGES = sorted(path.relative_to(PAGE.parent).as_posix() for path in PAGE.parent.rglob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page):
    place = PAGE.parent / page
    links = re.findall(r"\]\((?!https?:)([^)#]+)", place.read_text("utf-8"))
    assert [link for link in links if not (place.parent / link).exists()] == []


def test_the_tutorial_has_every_verb_of_the_main_job():
    verbs = {command.split()[0] for command in COMMANDS}
    assert {"inspect", "apply", "distill", "eval", "predict", "export", "report"} <= verbs
