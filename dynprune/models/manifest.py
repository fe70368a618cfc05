"""The manifest of a directory that dynprune wrote: its name, its version, and how it is read."""

import json
from pathlib import Path
from typing import Any

from dynprune.errors import InputError

__all__ = ["MANIFEST", "SCHEMA", "read_manifest"]

MANIFEST = "dynprune.json"
"""The file that marks a directory as written by dynprune."""

SCHEMA = "dynprune/1"
MOST_BYTES = 64 << 20


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read and check the outline of a directory's manifest.

    Raises:
        InputError: where it is missing, too large, or no manifest of this version.
    """
    path = directory / MANIFEST
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path} is larger than any manifest: {path.stat().st_size} bytes.")
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"Cannot read {path}: {error}.") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        found = manifest.get("schema") if isinstance(manifest, dict) else type(manifest).__name__
        raise InputError(f"{path} has schema {repr(found)[:40]}; this dynprune reads {SCHEMA!r}.")
    return manifest
