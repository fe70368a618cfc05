"""Run an engine's own quantiser on a file, in a process of its own.

nncf and onnxruntime.quantization print, draw progress bars from threads and set up logging for the
whole process when they are imported; none of that may reach a user's program or a JSON document.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from dynprune.errors import OutputError, UsageError
from dynprune.example import Example

__all__ = ["Quantiser", "quantise"]

Quantiser = Literal["nncf", "onnxruntime"]

_PACKAGES = {"nncf": "nncf", "onnxruntime": "onnxruntime.quantization"}


def quantise(
    source: Path,
    target: Path,
    calls: Iterable[Example],
    quantiser: Quantiser,
    *,
    leave_out: Mapping[str, str] | None = None,
    quick: bool = False,
) -> None:
    """Write an int8 form of a file: ranges of activations by running it on calls.

    Args:
        source: in float32; ``.xml`` for nncf, else ``.onnx``.
        target: ``.xml`` for nncf, else ``.onnx``.
        calls: inputs like those to come.
        quantiser: whose; ``nncf`` for OpenVINO.
        leave_out: name -> output of nodes that stay in float32.
        quick: leave out what costs time and only helps accuracy, to time the result.

    Raises:
        UsageError: the package is not installed.
        OutputError: it failed; the message is its own.
    """
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        count = 0
        for count, call in enumerate(calls, 1):
            arrays = {str(i): t.detach().cpu().numpy() for i, t in enumerate(call.tensors)}
            np.savez(place / f"{count - 1}.npz", allow_pickle=False, **arrays)
        request = {
            "source": str(source),
            "target": str(target),
            "calls": count,
            "quantiser": quantiser,
            "leave_out": dict(leave_out or {}),
            "quick": quick,
        }
        (place / "request.json").write_text(json.dumps(request), encoding="utf-8")
        # -P keeps files of the working directory from being taken for packages.
        command = [sys.executable, "-P", "-m", "dynprune.export.quantiser_process", scratch]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode == 3:
        raise UsageError(
            f"int8 needs the package {done.stderr.strip().splitlines()[-1]}:"
            " pip install 'dynprune[int8]'"
        )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
        raise OutputError(
            f"{_PACKAGES[quantiser]} cannot quantise this model ({lines[-1]}); nothing was written"
        )
