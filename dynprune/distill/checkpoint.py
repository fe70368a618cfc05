"""Checkpoints that are whole or absent: tensors in safetensors, the rest in JSON."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dynprune.errors import InputError, OutputError

__all__ = ["Checkpoint", "CheckpointStore"]

_LOG = logging.getLogger(__name__)
_FORMAT = 1
_MANIFEST = "trainer.json"
_BEST = "best.json"


@dataclass(frozen=True)
class Checkpoint:
    """The whole state of a run after a step.

    Attributes:
        step: optimizer steps done.
        tensors: by file (``model``, ``optimizer``, ``ema``) the named tensors.
        state: everything else, JSON-able.
        path: where it lies, once it is on disk.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]
    path: Path | None = None


class CheckpointStore:
    """Writes, finds and rotates ``DIR/step-N/``.

    A checkpoint is written beside its place, flushed to the disk with its directory and then
    renamed, so that a reader sees all of it or nothing. A manifest holds the SHA-256 of every
    file.

    Args:
        directory: of all checkpoints, usually ``RUN/checkpoints``.
        keep: how many of the latest stay; the best one stays besides.
    """

    def __init__(self, directory: Path, *, keep: int = 2) -> None:
        self.directory = directory
        self.keep = max(1, keep)

    def path(self, step: int) -> Path:
        """Return the place of a step's checkpoint."""
        return self.directory / f"step-{step}"

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint and return its directory; the oldest beyond ``keep`` are deleted.

        Raises:
            OutputError: if it cannot be written. The ones before it stay.
        """
        target = self.path(checkpoint.step)
        beside = self.directory / f".writing-{target.name}"
        try:
            self.clean()
            beside.mkdir(parents=True)
            self._write(checkpoint, beside)
            if target.exists():
                os.replace(target, self.directory / f".old-{target.name}")
            os.replace(beside, target)
            _sync(self.directory)
            self.clean()
            self._rotate()
        except (OSError, SafetensorError) as error:
            shutil.rmtree(beside, ignore_errors=True)
            raise OutputError(f"cannot write the checkpoint {target}: {error}") from error
        return target

    def mark_best(self, step: int, metric: str, value: float) -> None:
        """Name the best checkpoint in ``best.json``."""
        record = {"checkpoint": f"step-{step}", "step": step, "metric": metric, "value": value}
        beside = self.directory / f".writing-{_BEST}"
        try:
            _write_json(record, beside)
            os.replace(beside, self.directory / _BEST)
            _sync(self.directory)
        except OSError as error:
            raise OutputError(f"cannot write {self.directory / _BEST}: {error}") from error

    def best(self) -> Path | None:
        """Return the directory of the best checkpoint, or None where none is marked."""
        try:
            record = json.loads((self.directory / _BEST).read_text(encoding="utf-8"))
            path = self.directory / str(record["checkpoint"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return path if path.is_dir() else None

    def latest(self) -> Checkpoint | None:
        """Read the latest whole checkpoint; broken ones are skipped with a warning."""
        for step in sorted(self.steps(), reverse=True):
            path = self.directory / f"step-{step}"
            try:
                return self.read(path)
            except InputError as error:
                _LOG.warning("%s; the checkpoint before it is used", error)
        return None

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, whole or not, ascending."""
        names = [path.name for path in self.directory.glob("step-*") if path.is_dir()]
        return sorted(int(name[5:]) for name in names if name[5:].isdigit())

    @staticmethod
    def read(path: Path) -> Checkpoint:
        """Read and verify one checkpoint.

        Raises:
            InputError: if it is incomplete or damaged.
        """
        try:
            manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
            if manifest["format"] != _FORMAT:
                raise InputError(
                    f"checkpoint {path} has format {manifest['format']}, this version reads "
                    f"{_FORMAT}"
                )
            for name, expected in manifest["files"].items():
                if _file_digest(path / name) != expected:
                    raise InputError(f"checkpoint {path} is damaged: {name} is not as written")
            tensors = {Path(name).stem: load_file(path / name) for name in manifest["files"]}
            return Checkpoint(int(manifest["step"]), tensors, manifest["state"], path)
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise InputError(f"checkpoint {path} is incomplete: {error}") from error

    def clean(self) -> None:
        """Delete what an interrupted write or rotation left behind."""
        for pattern in (".writing-*", ".old-*"):
            for path in self.directory.glob(pattern):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def _write(self, checkpoint: Checkpoint, directory: Path) -> None:
        digests: dict[str, str] = {}
        for name, tensors in checkpoint.tensors.items():
            path = directory / f"{name}.safetensors"
            # Clones: the format refuses tensors that share memory, as tied weights do.
            save_file({key: _plain(tensor) for key, tensor in tensors.items()}, path)
            _sync(path)
            digests[path.name] = _file_digest(path)
        manifest = {
            "format": _FORMAT,
            "step": checkpoint.step,
            "files": digests,
            "state": dict(checkpoint.state),
        }
        _write_json(manifest, directory / _MANIFEST)
        _sync(directory)

    def _rotate(self) -> None:
        best = self.best()
        for step in self.steps()[: -self.keep]:
            path = self.directory / f"step-{step}"
            if path != best:
                # Out of sight first, so that no half-deleted checkpoint is ever seen.
                gone = self.directory / f".old-{path.name}"
                os.replace(path, gone)
                shutil.rmtree(gone, ignore_errors=True)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone().contiguous()


def _write_json(value: Any, path: Path) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    _sync(path)


def _sync(path: Path) -> None:
    """Flush a file, or a directory's entries, to the disk."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
