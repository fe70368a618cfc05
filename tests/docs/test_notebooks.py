"""The notebooks run from top to bottom in a kernel, and are kept without what they showed."""

import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
# What takes minutes; everything else is as it stands.
SMALLER = {
    "segmentation.ipynb": {
        "TEACHER_STEPS = 400": "TEACHER_STEPS = 4",
        "STUDENT_STEPS = 100": "STUDENT_STEPS = 10",
        "training=120, validation=16": "training=16, validation=2",
    },
    "own_model.ipynb": {"STEPS = 150": "STEPS = 100"},
}
SHOWN = {
    "segmentation.ipynb": ["half pruned, after 10 steps: mIoU 0.", "M executed"],
    "own_model.ipynb": ["parameters: 100804 dense", "ok         compact equals masked"],
}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_kept_without_outputs(name):
    cells = json.loads((FOLDER / name).read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the kernel's own packages
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="notebooks are run by the extra dev")
    import nbformat

    text = (FOLDER / name).read_text("utf-8")
    for printed, tiny in SMALLER[name].items():
        assert printed in text
        text = text.replace(printed, tiny)
    notebook = nbformat.reads(text, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    shown = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout")
    for line in SHOWN[name]:
        assert line in shown
    warned = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stderr")
    assert not re.search(r"(?<!Tqdm)Warning", warned), warned  # tqdm asks for widgets


def test_the_main_tutorials_have_one():
    assert {"segmentation.ipynb", "own_model.ipynb"} <= set(NOTEBOOKS)
