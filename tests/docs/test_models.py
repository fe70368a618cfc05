"""The table of models says what is so."""

import importlib.util
import sys
from pathlib import Path

import pytest

from tests.zoo import ZOO

SCRIPT = Path(__file__).parents[2] / "docs" / "models.py"


@pytest.fixture(scope="module")
def models():
    spec = importlib.util.spec_from_file_location("models_page", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "models_page", module)
        spec.loader.exec_module(module)
        yield module


def test_the_row_of_a_vision_transformer_is_right(models):
    row = models.inspect("vit")
    # Two layers, width 32, hidden width 64, 16 patches of 8x8 pixels and a class token, 2 classes.
    layer = 17 * (4 * 32 * 32 + 2 * 32 * 64) + 2 * 17 * 17 * 32
    other = 16 * 32 * 3 * 8 * 8 + 32 * 2
    assert row.reach == pytest.approx(2 * layer / (2 * layer + other), abs=1e-9)
    assert (row.kinds, row.modes) == ({"ffn": 2, "qk": 2, "v": 2}, {"compact": 6})
    cells = row.cells()
    assert cells[:9] == ["`vit`", "ViTForImageClassification", *"2226000"]
    assert " | ".join(cells) in models.page([row])


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_the_page_says_of_every_model_what_is_so(models, name):
    """All but the seconds, which are another machine's every time."""
    written = (SCRIPT.parent / "models.md").read_text(encoding="utf-8")
    (line,) = [
        line
        for line in written.splitlines()
        if line.startswith(f"| `{name}` | ") and line.count("|") == 12
    ]
    found = [cell.strip() for cell in line.strip("|").split("|")]
    row = models.inspect(name)
    wanted = row.cells()
    assert found[:-2] + found[-1:] == wanted[:-2] + wanted[-1:]
    for reason in row.reasons:
        assert reason.replace("|", "\\|") in written
