"""The demo from end to end, on a few scenes and a few steps."""

import functools

import pytest

from dynprune import demo
from dynprune.gate import is_gated
from dynprune.models import load_model

SHORT = (
    "--set", "stages.0.steps=2", "--set", "stages.1.steps=2", "--set", "runtime.validate_every=4",
    "--set", "sparsity.schedule.end_step=2", "--set", "lr_schedule.warmup_steps=0",
    "--set", "apply.calibration.images=4", "--threads", "1",
)  # fmt: skip


@pytest.fixture
def small(monkeypatch):
    few = functools.partial(demo.make_dataset, training=6, validation=2)
    monkeypatch.setattr(demo, "make_dataset", few)
    monkeypatch.setattr(demo, "train_teacher", functools.partial(demo.train_teacher, steps=2))


def test_the_demo_makes_everything_and_spares_what_it_did_not_make(run, tmp_path, small):
    out = tmp_path / "demo"
    first = run("demo", "-o", out, "--json", *SHORT)
    assert first.err.startswith("1/5 data")
    figures = first.document
    assert set(figures["miou"]) == {"teacher", "student_untrained", "student"}
    assert figures["macs"]["pruned"]["executed"]["max"] < figures["macs"]["rewritten"]
    assert {path.name for path in (out / "pictures").glob("0_*")} == {
        f"0_{name}.png" for name in ("picture", "label", "teacher", "student")
    }
    assert is_gated(load_model(str(out / "student")).module)
    assert not is_gated(load_model(str(out / "teacher")).module)
    run("demo", "-o", out, code=4)
    (out / "mine").write_text("mine")
    assert "mine" in run("demo", "-o", out, "--overwrite", code=4).err
    assert (out / "student" / "model.safetensors").is_file()
