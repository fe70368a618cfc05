"""What an image processor of the transformers library says of a model's pictures and labels.

Its settings lie beside a model's weights as ``preprocessor_config.json``. They are read as plain
values: no processor is built, and no code that a file names is run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dynprune.data.normalise import IMAGENET_MEAN, IMAGENET_STD
from dynprune.data.preprocessing import Resize
from dynprune.errors import InputError

__all__ = [
    "PROCESSOR_FILE",
    "ImageProcessor",
    "center_crop_of",
    "is_of_pictures",
    "read_processor",
]

PROCESSOR_FILE = "preprocessor_config.json"

_BILINEAR = 2
_FILTERS = range(6)  # Pillow's: nearest, lanczos, bilinear, bicubic, box, hamming
_FILTER_NAMES = {
    "nearest": 0, "lanczos": 1, "bilinear": 2, "linear": 2, "bicubic": 3, "cubic": 3, "box": 4,
    "hamming": 5,
}  # fmt: skip
_HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_HALVED = ("Beit", "DPT", "Data2Vec", "MobileNetV", "ViT", "DeiT")
"""Processors whose mean and standard deviation are one half where their file has none."""

_PLAIN = ("MobileViT",)  # processors that only scale pixels to 0..1
_BY_EDGE = ("MobileViT", "MobileNetV", "ConvNext", "CLIP", "DeiT")  # what `size: 256` is to them
_SQUARE = ("Segformer", "Beit", "DPT", "ViT", "Data2Vec")
_LEAST_SQUARE, _LEAST_SHARE = 384, 224 / 256  # of ConvNeXt's processor
_LARGEST_SIDE = 1 << 16
_LARGEST = 1e6
_FOLLOWED = {"do_resize", "do_rescale", "do_normalize", "do_reduce_labels", "do_convert_rgb"}
_WHY_NOT = {
    "do_center_crop": "every pixel is labelled, so nothing is cut off",
    "do_pad": "pictures go in one by one, so none needs padding",
}


@dataclass(frozen=True)
class ImageProcessor:
    """The settings of an image processor that matter here.

    Attributes:
        mean: of every channel, for pixels from 0 to 1; zeros where nothing is subtracted.
        std: standard deviation likewise. A factor other than 1/255 is part of both.
        resize: size that pictures are brought to, or None.
        reduce_labels: whether label 0 is void, and the others lose one.
        not_followed: each setting that is not carried out, and why.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Resize | None
    reduce_labels: bool
    not_followed: tuple[str, ...] = ()


def is_of_pictures(values: Mapping[str, Any]) -> bool:
    """Whether a preprocessor's settings are about pictures; speech has such a file too."""
    if "sampling_rate" in values or "num_mel_bins" in values:
        return False
    known = ("image_mean", "image_std", "do_resize", "do_normalize", "do_rescale", "size")
    named = str(values.get("image_processor_type", values.get("feature_extractor_type", "")))
    return "ImageProcessor" in named or any(key in values for key in known)


def read_processor(values: Mapping[str, Any], *, where: str = PROCESSOR_FILE) -> ImageProcessor:
    """Read the settings of an image processor.

    Args:
        values: as its file holds them.
        where: they stand, for messages.

    Raises:
        InputError: if a value is not one that a processor can have, or says something that is
            not carried out here and would change every picture.

    Example:
        >>> read_processor({"do_normalize": False}).std
        (1.0, 1.0, 1.0)
    """
    kind = str(values.get("image_processor_type", values.get("feature_extractor_type", "")))
    if _flag(values, "do_flip_channel_order", kind.startswith(_PLAIN), where):
        raise InputError(
            f"{where} says do_flip_channel_order: the model reads blue, green, red, which is not "
            "supported; wrap the model in a module:factory that flips the channels itself"
        )
    mean, std = _statistics(values, kind, where)
    return ImageProcessor(
        mean=mean,
        std=std,
        resize=_resize(values, kind, where),
        reduce_labels=_flag(values, "do_reduce_labels", bool(values.get("reduce_labels")), where),
        not_followed=_not_followed(values),
    )


def center_crop_of(
    values: Mapping[str, Any], *, where: str = PROCESSOR_FILE
) -> tuple[int, int] | None:
    """Return the height and width of the centre that a processor cuts out of a resized picture.

    Where every pixel is labelled nothing is cut off, so this is for whole pictures' labels alone.

    Raises:
        InputError: if the settings ask for a crop and say no size that can be followed.

    Example:
        >>> center_crop_of({"do_center_crop": True, "crop_size": 224})
        (224, 224)
    """
    if "crop_pct" in values:  # ConvNeXt's processor: a smaller square out of a larger side
        edge = (values.get("size") or {}).get("shortest_edge")
        if not _flag(values, "do_resize", True, where) or edge is None or edge >= _LEAST_SQUARE:
            return None
        return _side(edge, "shortest_edge", where), edge
    if not _flag(values, "do_center_crop", False, where):
        return None
    size = values.get("crop_size")
    if isinstance(size, Mapping):
        known = {key: side for key, side in size.items() if side is not None}
        edge = known.get("shortest_edge")
        pair = (known.get("height", edge), known.get("width", edge))
    else:
        pair = tuple(size) if isinstance(size, (list, tuple)) and len(size) == 2 else (size, size)
    return _side(pair[0], "crop_size", where), _side(pair[1], "crop_size", where)


def _statistics(
    values: Mapping[str, Any], kind: str, where: str
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and standard deviation for pixels from 0 to 1, the factor's part in them.

    With a factor f, (f x - m) / s = (x / 255 - m / (255 f)) / (s / (255 f)).
    """
    plain = kind.startswith(_PLAIN)  # though its file may have a mean
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if _flag(values, "do_normalize", not plain, where):
        usual = _HALVES if kind.startswith(_HALVED) else (IMAGENET_MEAN, IMAGENET_STD)
        mean = _channels(values, "image_mean", usual[0], where)
        std = _channels(values, "image_std", usual[1], where)
        if min(std) <= 0:
            raise InputError(f"{where} says image_std: {list(std)}; every one must be over 0")
    factor = 1.0
    if _flag(values, "do_rescale", True, where):
        found = values.get("rescale_factor")
        factor = 1 / 255 if found is None else _number(found, "rescale_factor", where)
        if factor <= 0:
            raise InputError(f"{where} says rescale_factor: {factor}; it must be over 0")
    scale = 1 / (255 * factor)
    if abs(scale - 1) < 1e-6:  # 1/255 in a file of a few digits
        return mean, std
    return _scaled(mean, scale), _scaled(std, scale)


def _scaled(values: tuple[float, float, float], by: float) -> tuple[float, float, float]:
    return values[0] * by, values[1] * by, values[2] * by


def _resize(values: Mapping[str, Any], kind: str, where: str) -> Resize | None:
    size = values.get("size")
    if not _flag(values, "do_resize", size is not None, where):
        return None
    if size is None:
        raise InputError(f"{where} says do_resize and no size; add the size, or do_resize: false")
    resample = _filter(values, where)
    if isinstance(size, int) and not isinstance(size, bool):
        if kind.startswith(_BY_EDGE):
            size = {"shortest_edge": size}
        elif kind.startswith(_SQUARE):
            size = {"height": size, "width": size}
        else:
            raise InputError(
                f"{where} says size: {size}, and that of {kind or 'an unnamed processor'} may be "
                'a square or a shorter side; write {"height": N, "width": N} or '
                '{"shortest_edge": N}'
            )
    elif isinstance(size, (list, tuple)) and len(size) == 2:
        size = {"height": size[0], "width": size[1]}
    if not isinstance(size, Mapping):
        raise InputError(f"{where} says size: {str(size)[:80]}, which is no size of a picture")
    known = {key: value for key, value in size.items() if value is not None}
    if "crop_pct" in values and set(known) == {"shortest_edge"}:
        known = _of_convnext(_side(known["shortest_edge"], "shortest_edge", where), values, where)
    allowed = (
        {"height", "width"}, {"shortest_edge"}, {"longest_edge"}, {"shortest_edge", "longest_edge"}
    )  # fmt: skip
    if set(known) not in allowed:
        raise InputError(
            f"{where} says size: {str(dict(size))[:80]}; height and width, shortest_edge, or "
            "longest_edge can be followed"
        )
    return Resize(
        **{key: _side(side, key, where) for key, side in known.items()}, resample=resample
    )


def _of_convnext(edge: int, values: Mapping[str, Any], where: str) -> dict[str, int]:
    """Return the size of ConvNeXt's processor: a square, or larger than the crop that follows."""
    if edge >= _LEAST_SQUARE:
        return {"height": edge, "width": edge}
    share = values["crop_pct"]
    share = _LEAST_SHARE if share is None else _number(share, "crop_pct", where)
    if not 0 < share <= 1:
        raise InputError(f"{where} says crop_pct: {share}; it must be over 0 and at most 1")
    return {"shortest_edge": int(edge / share)}


def _filter(values: Mapping[str, Any], where: str) -> int:
    found = values.get("resample", _BILINEAR)
    if found is None:
        return _BILINEAR
    if isinstance(found, str) and found.lower() in _FILTER_NAMES:
        return _FILTER_NAMES[found.lower()]
    if isinstance(found, bool) or not isinstance(found, int) or found not in _FILTERS:
        raise InputError(
            f"{where} says resample: {str(found)[:40]}, which is no filter that is known; 0 to 5 "
            "are (2 is bilinear)"
        )
    return found


def _not_followed(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Name every switch that is on and not carried out."""
    found = []
    for key, value in values.items():
        if key.startswith("do_") and value is True and key not in _FOLLOWED:
            why = _WHY_NOT.get(key)
            found.append(key if why is None else f"{key} ({why})")
    if "crop_pct" in values:
        found.append("crop_pct's crop (every pixel is labelled, so nothing is cut off)")
    multiple = values.get("ensure_multiple_of") or values.get("size_divisor")
    if values.get("keep_aspect_ratio") is True:
        found.append("keep_aspect_ratio")
    if isinstance(multiple, int) and multiple > 1:
        found.append("ensure_multiple_of" if "ensure_multiple_of" in values else "size_divisor")
    return tuple(found)


def _flag(values: Mapping[str, Any], key: str, default: bool, where: str) -> bool:
    if key not in values:
        return default
    found = values[key]
    if found is None:  # so is a switch written that the processor's class does not have
        return False
    if not isinstance(found, bool):
        raise InputError(f"{where} says {key}: {str(found)[:40]}; it is either true or false")
    return found


def _channels(
    values: Mapping[str, Any], key: str, usual: tuple[float, float, float], where: str
) -> tuple[float, float, float]:
    found = values.get(key)
    if found is None:
        return usual
    listed = list(found) if isinstance(found, (list, tuple)) else [found]
    numbers = [_number(value, key, where) for value in listed]
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3:
        raise InputError(
            f"{where} says {key} for {len(numbers)} channels; pictures are red, green and blue"
        )
    return numbers[0], numbers[1], numbers[2]


def _number(value: Any, key: str, where: str) -> float:
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not numeric or not -_LARGEST <= value <= _LARGEST:  # no number at all is within bounds
        raise InputError(
            f"{where} says {key}: {str(value)[:40]}, which is no number that a picture is scaled by"
        )
    return float(value)


def _side(value: Any, key: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LARGEST_SIDE:
        raise InputError(
            f"{where} says {key}: {str(value)[:40]} of the size; 1 to {_LARGEST_SIDE} pixels"
        )
    return value
