"""The tutorial on classification is followed word for word, with a tiny ViT and tiny pictures."""

import json
import re
from pathlib import Path

import torch
from dynprune.cli.main import app
from PIL import Image
from typer.testing import CliRunner

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "classification.md"
TEXT = PAGE.read_text(encoding="utf-8")
FIVE = re.search(r"## Five commands\n\n((?:    .+\n)+)", TEXT)[1].split("\n")[:-1]
COMMANDS = re.findall(r"^    dynprune (.+)$", TEXT, flags=re.MULTILINE)
# What takes minutes on real pictures; everything else is as printed.
SMALLER = [
    *("--set", "stages[0].steps=2", "--set", "stages[1].steps=2", "--set", "runtime.batch_size=4"),
    *("--set", "lr_schedule.warmup_steps=1", "--set", "apply.calibration.images=4"),
    *("--set", "sparsity.distribution=uniform", "--set", "apply.gate.align=2", "--device", "cpu"),
]


def write_photos(root):
    random = torch.Generator().manual_seed(0)
    for split, first, count in (("train", 1, 4), ("val", 101, 2)):
        for name, level in (("cat", 60), ("dog", 160)):
            for index in range(first, first + count):
                noise = torch.randn(40, 48, 3, generator=random) * 30 + level
                path = root / split / name / f"{index:03}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(noise.clamp(0, 255).to(torch.uint8).numpy()).save(path)


def write_classifier(directory):
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        num_labels=2,
        id2label={0: "dog", 1: "cat"},
        label2id={"dog": 0, "cat": 1},
    )
    ViTForImageClassification(config).save_pretrained(directory)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": 32, "width": 32},
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))


def test_five_commands_lead_from_an_installation_to_a_report(tmp_path, monkeypatch):
    assert len(FIVE) == 5
    assert FIVE[0].strip() == "pip install dynprune"
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos")
    write_classifier(tmp_path / "my_vit")
    for command in COMMANDS:
        words = command.split()
        if words[0] == "distill" and "--recipe" in words:
            words += SMALLER
        if words[:2] == ["report", "all"]:
            assert f"dynprune {command}" == FIVE[-1].strip()
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, f"dynprune {command}\n{result.output}"
    page = (tmp_path / "report.html").read_text()
    assert "top-1" in page
    assert "101.jpg" in page
    (row,) = json.loads((tmp_path / "seen" / "classes.json").read_text())
    assert {choice["class"] for choice in row["top"]} == {"cat", "dog"}
    (loading,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    names = {}
    exec(loading, names)
    assert names["model"](torch.zeros(1, 3, 32, 32)).logits.shape == (1, 2)


def test_every_key_of_the_page_is_one_of_the_recipe():
    from dynprune.recipe import load_recipe

    keys = re.findall(r"`([\w.\[\]]+=[\w.-]+)`", TEXT)
    assert len(keys) >= 5
    for key in keys:
        load_recipe("vit-classification", [key])
