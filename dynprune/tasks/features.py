"""Dense features as a task: pictures without labels, and how close their features stay."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynprune.data import read_picture, write_picture
from dynprune.data.folders import FolderData, open_pictures
from dynprune.example import Example
from dynprune.host.modes import at_inference
from dynprune.tasks.task import (
    Exhibit,
    Kind,
    Prediction,
    Progress,
    Reading,
    Samples,
    Scores,
    spread_over,
)
from dynprune.tasks.vectors import compare_vectors, feature_vectors, see_positions
from dynprune.tasks.views import colour_axes, coloured_features, data_url, picture_view

__all__ = ["KIND", "Features"]

_HEIGHT = 224  # pixels of a view


@dataclass(frozen=True)
class Features:
    """Pictures without labels.

    Attributes:
        data: the pictures.
        reading: how they are read.
    """

    data: FolderData
    reading: Reading

    name = "features"
    unit = "images"
    metric = "cosine"
    compares = True
    ignore_index = -100

    def __len__(self) -> int:
        return len(self.data)

    @property
    def names(self) -> Sequence[str]:
        """The pictures' paths."""
        return [str(path) for path in self.data.images]

    def settled(self, model: nn.Module) -> "Features":
        """Return the data as it is, once one picture has run through the model."""
        device = str(next(model.parameters()).device)
        with at_inference(model):
            feature_vectors(self.call(0, device).run(model))
        return self

    def call(self, index: int, device: str = "cpu") -> Example:
        """Return the call of one picture, as it is evaluated."""
        return Example((self.reading.preprocessing(self.data.picture(index), device),))

    def samples(self) -> Samples:
        """Return random crops of the pictures of every step."""
        return self.reading.crops(self.data)

    def evaluate(
        self,
        model: nn.Module,
        dense: nn.Module | None = None,
        *,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> Scores:
        """Compare the features of every picture, position by position."""
        assert dense is not None
        return compare_vectors(
            model,
            dense,
            lambda index: self.call(index, device),
            len(self),
            see_positions,
            progress=progress,
        )

    def exhibits(
        self, student: nn.Module, dense: nn.Module | None, *, count: int, device: str = "cpu"
    ) -> Sequence[Exhibit]:
        """Show the features of pictures as colours, both models' along the same directions."""
        shown = []
        for index in spread_over(len(self), count):
            call = self.call(index, device)
            seen = {"student": _vectors(student, call)}
            if dense is not None:
                seen = {"teacher": _vectors(dense, call)} | seen
            grid = _grid(call, next(iter(seen.values())).shape[0])
            view, size = picture_view(self.data.picture(index))
            views = {"picture": view}
            if grid is not None:
                maps = {who: found[-grid[0] * grid[1] :] for who, found in seen.items()}
                axes = colour_axes(next(iter(maps.values())))
                for who, found in maps.items():
                    views[who] = data_url(coloured_features(found, grid, axes, _HEIGHT))
            rows: tuple[tuple[str, str], ...] = ()
            if dense is not None:
                close = F.cosine_similarity(seen["student"], seen["teacher"], dim=-1).mean()
                rows = (("cosine", f"{close:.4f}"),)
            shown.append(Exhibit(self.data.images[index].name, views, size, rows))
        return shown

    def shares(self) -> Sequence[float] | None:
        """Return None: there are no classes."""
        return None

    def fingerprint(self) -> Any:
        """Return the pictures' own."""
        return self.data.fingerprint()


def _vectors(model: nn.Module, call: Example) -> Tensor:
    """Return the feature vectors of one picture, ``(N, C)`` on the CPU."""
    with at_inference(model), torch.no_grad():
        return feature_vectors(call.run(model))[0].float().cpu()


def _grid(call: Example, positions: int) -> tuple[int, int] | None:
    """Guess rows and columns of the positions, of which the first few may be no patches."""
    height, width = call.args[0].shape[-2:]
    for extra in range(6):  # a class token, registers
        patches = positions - extra
        rows = round(math.sqrt(patches * height / width)) if patches > 1 else 0
        if rows and patches % rows == 0 and abs(patches // rows - rows * width / height) < 1:
            return rows, patches // rows
    return None


def _predict(
    model: nn.Module, inputs: Sequence[str], directory: Path, reading: Reading, device: str
) -> Iterator[Prediction]:
    """Write the features of pictures: the vectors as safetensors, and as colours."""
    from dynprune.tasks.written import free_names, write_tensors

    for path, stem in zip(inputs, free_names(inputs), strict=True):
        call = Example((reading.preprocessing(read_picture(Path(path)), device),))
        vectors = _vectors(model, call)
        files = {"features": directory / f"{stem}.safetensors"}
        write_tensors(files["features"], {"features": vectors})
        grid = _grid(call, len(vectors))
        if grid is not None:
            patches = vectors[-grid[0] * grid[1] :]
            files["colours"] = directory / f"{stem}.png"
            write_picture(files["colours"], coloured_features(patches, grid, colour_axes(patches)))
        shape = list(vectors.shape)
        yield Prediction(path, files, {"shape": shape}, f"{shape[0]} vectors of {shape[1]}")


def _check(data: str, split: str) -> None:
    open_pictures(Path(data), split)


def _recognises(data: str) -> bool:
    root = Path(data)
    if not root.is_dir():
        return False
    try:
        open_pictures(root, "val")
    except OSError:  # of which InputError is one: no pictures here
        return False
    return True


def _open(data: str, split: str, reading: Reading) -> Features:
    return Features(open_pictures(Path(data), split), reading)


KIND = Kind(
    "features", "train/*.jpg with val/*.jpg, or *.jpg", _recognises, _check, _open, _predict
)
