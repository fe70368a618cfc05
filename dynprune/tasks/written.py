"""What a prediction writes beside pictures: tensors, each file whole or not at all."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from dynprune.errors import OutputError, UsageError

__all__ = ["free_names", "write_tensors"]


def free_names(inputs: Sequence[str]) -> list[str]:
    """Return the stem of every input's file name.

    Raises:
        UsageError: if two are alike, so that one would be written over the other.
    """
    seen: dict[str, str] = {}
    for name in inputs:
        stem = Path(name).stem
        if stem in seen:
            raise UsageError(
                f"{seen[stem]} and {name} would both be written to {stem}; rename one, or give "
                "them in two calls with different output directories"
            )
        seen[stem] = name
    return list(seen)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors.

    Raises:
        OutputError: if the file cannot be written.
    """
    beside = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, beside)
        os.replace(beside, path)
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{path} cannot be written: {error}") from error
    finally:
        beside.unlink(missing_ok=True)
