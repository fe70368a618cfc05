"""What every test can count on: one seed, one thread, no terminal, no network."""

import os
import sys

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["NO_COLOR"] = "1"
os.environ["TERM"] = "dumb"
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _seed():
    import torch

    torch.manual_seed(0)


def pytest_unconfigure(config):
    """Leave with pytest's own status, without taking the interpreter down.

    With torch, onnxruntime and openvino in one process, a thread of theirs may still be in Python
    code while the interpreter is taken down, and crash the run after its summary was printed.
    """
    status = getattr(config, "_status_of_the_run", None)
    if status is None:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def pytest_sessionfinish(session, exitstatus):
    session.config._status_of_the_run = int(exitstatus)


#: Test modules that run inference engines, whose threads stay until the process ends.
ENGINE_TESTS = (
    "/export/",
    "test_export",
    "latency",
    "engines",
    "test_report_page",
    "test_page",
    "test_tutorial",
)


def pytest_collection_modifyitems(items):
    """Run the engines' tests last: their threads do not bear processes that come and go."""
    items.sort(key=lambda item: any(name in item.path.as_posix() for name in ENGINE_TESTS))
