"""Show what a model sees: its label map in colour, laid over each picture.

Colours depend on the class index alone, so that two models' pictures can be compared.
"""

from collections.abc import Iterator, Sequence
from colorsys import hsv_to_rgb
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dynprune.data import Preprocessing, read_picture, write_label, write_picture
from dynprune.errors import UsageError
from dynprune.host.modes import evaluating
from dynprune.tasks.evaluate import predict_logits
from dynprune.tasks.logits import label_map

__all__ = ["Prediction", "overlay", "palette", "predict", "predict_files"]

_GOLDEN = (5**0.5 - 1) / 2
_SATURATIONS = (0.9, 0.55, 0.75)
_VALUES = (1.0, 0.75, 0.9)


@dataclass(frozen=True)
class Prediction:
    """The files that one picture's prediction was written to.

    Attributes:
        image: the picture.
        overlay: its label map in colour, over the picture.
        labels: the label map alone, one class index a pixel, with the same colours as palette.
        shares: share of the pixels of each class that was found, by class index.
    """

    image: Path
    overlay: Path
    labels: Path
    shares: dict[int, float]


def palette(classes: int = 256) -> Tensor:
    """Return a bright colour to every class: hues a golden ratio apart, so that neighbours differ.

    Saturation and brightness change too, every 5 and every 7 classes.

    Returns:
        uint8 ``(classes, 3)``; the first colours are the same for every number of classes.
    """
    colours = [
        hsv_to_rgb(index * _GOLDEN % 1, _SATURATIONS[index // 5 % 3], _VALUES[index // 7 % 3])
        for index in range(classes)
    ]
    return (torch.tensor(colours) * 255).round().to(torch.uint8)


@torch.no_grad()
def predict(
    model: nn.Module,
    image: Tensor,
    preprocessing: Preprocessing | None = None,
    *,
    device: torch.device | str = "cpu",
    name: str = "the picture",
) -> Tensor:
    """Label every pixel of one picture.

    Args:
        model: from pictures ``(1, 3, H, W)`` to logits.
        image: the picture.
        preprocessing: how it goes in; at full size, with ImageNet's mean and standard deviation,
            by default.
        device: where the model is.
        name: of the picture, for messages.

    Shape:
        uint8 ``(3, H, W)`` in, uint8 ``(H, W)`` out.
    """
    preprocessing = preprocessing or Preprocessing()
    with evaluating(model):
        logits = predict_logits(model, preprocessing(image, device), preprocessing, name=name)
    return label_map(logits, image.shape[1:])[0].to("cpu", torch.uint8)


def overlay(image: Tensor, label: Tensor, *, opacity: float = 0.55) -> Tensor:
    """Lay a label map in colour over its picture.

    Args:
        image: the picture.
        label: its label map.
        opacity: of the colours, from 0 (the picture alone) to 1 (the colours alone).

    Shape:
        uint8 ``(3, H, W)`` and ``(H, W)`` in, uint8 ``(3, H, W)`` out.
    """
    colours = palette()[label.long()].permute(2, 0, 1).float()
    return image.float().lerp(colours, opacity).round().to(torch.uint8)


def predict_files(
    model: nn.Module,
    images: Sequence[Path | str],
    directory: Path | str,
    preprocessing: Preprocessing | None = None,
    *,
    opacity: float = 0.55,
    device: torch.device | str = "cpu",
) -> Iterator[Prediction]:
    """Label pictures and write ``NAME.png`` (overlay) and ``NAME_labels.png`` for each.

    Every file is written whole or not at all. Each prediction is yielded once it is on disk.

    Args:
        model: from pictures to logits.
        images: files to read.
        directory: where the predictions go; made where it is missing.
        preprocessing: how pictures go in, see :func:`predict`.
        opacity: of the colours, 0 to 1.
        device: where the model is.

    Raises:
        InputError: if a picture cannot be read.
        OutputError: if a file cannot be written.
        UsageError: if two pictures would be written to the same file.
    """
    paths = [Path(image) for image in images]
    written: dict[str, Path] = {}
    for path in paths:
        for name in (f"{path.stem}.png", f"{path.stem}_labels.png"):
            if name in written:
                raise UsageError(
                    f"{written[name]} and {path} would both be written to {name}; rename one, or "
                    "give them in two calls with different output directories"
                )
            written[name] = path
    for path in paths:
        image = read_picture(path)
        label = predict(model, image, preprocessing, device=device, name=str(path))
        target = Path(directory) / f"{path.stem}.png"
        indices = target.with_name(f"{path.stem}_labels.png")
        write_label(indices, label, palette())
        write_picture(target, overlay(image, label, opacity=opacity))
        found, counts = label.unique(return_counts=True)
        shares = (counts / label.numel()).tolist()
        yield Prediction(path, target, indices, dict(zip(found.tolist(), shares, strict=True)))
