"""The tiny world that benchmarks/reliability attacks, made once."""

import sys

import pytest
from dynprune.cli.main import app
from typer.testing import CliRunner

from benchmarks.reliability.process import Ended
from benchmarks.reliability.world import make_world

if sys.platform != "linux":
    pytest.skip("these tests read /proc and end processes", allow_module_level=True)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    made = make_world(tmp_path_factory.mktemp("reliability") / "world")
    result = CliRunner().invoke(app, made.apply(made.gated))
    assert result.exit_code == 0, result.output
    return made


def in_this_process(arguments, **_):
    """Run a command in the tests' own process, with its own error handling."""
    result = CliRunner().invoke(app, arguments)
    unexpected = result.exc_info and not isinstance(result.exception, SystemExit | None)
    trace = f"Traceback: {result.exc_info}" if unexpected else ""
    return Ended(result.exit_code, result.stdout, result.stderr + trace, 0.0, 0.0, hung=False)
