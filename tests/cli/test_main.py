"""The entry point: how fast it answers, and what it must not import to do so."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "numpy", "kornia", "accelerate", "matplotlib")


@pytest.mark.parametrize("arguments", [["--help"], ["recipe", "list"], ["distill", "--help"]])
def test_what_needs_no_model_imports_no_torch(arguments):
    code = (
        "import sys\n"
        "from dynprune.cli.main import app\n"
        "try:\n"
        f"    app({arguments!r})\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.strip() == "[]"


def test_the_installed_command_exits_with_the_code_of_the_mistake():
    code = "from dynprune.cli.main import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", code, "recipe", "validate", "nope"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: ")
