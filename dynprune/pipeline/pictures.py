"""How pictures and labels are read: as the recipe says, else as the model's own processor does.

What was followed is told in a sentence each, since it decides about every score.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from dynprune.data import (
    PROCESSOR_FILE,
    VOID,
    ImageProcessor,
    LabelValues,
    Preprocessing,
    Resize,
    read_processor,
)
from dynprune.data.processor import center_crop_of
from dynprune.errors import UsageError
from dynprune.models import LoadedModel, provenance_of
from dynprune.recipe import Recipe

__all__ = [
    "PictureRules",
    "picture_rules",
    "preprocessing_of",
    "processor_of",
    "whole_picture_rules",
]


@dataclass(frozen=True)
class PictureRules:
    """What becomes of pictures and of label maps, and who says so.

    Attributes:
        preprocessing: how pictures go into the model.
        values: what the values in label maps mean.
        followed: whether the model's own processor said any of it.
        not_followed: what it says and nobody carries out.
        notes: sentences for the user.
        labelled: whether there are label maps, whose values are told too.
    """

    preprocessing: Preprocessing
    values: LabelValues
    followed: bool
    not_followed: tuple[str, ...]
    notes: tuple[str, ...]
    labelled: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return the rules as plain values."""
        followed = PROCESSOR_FILE if self.followed else None
        if not self.labelled:
            told = {"not_followed": list(self.not_followed)}
            return {"from": followed, **self.preprocessing.to_json(), **told}
        return {
            "from": followed,
            **self.preprocessing.to_json(),
            "reduce_labels": self.values.reduce,
            "ignore_index": sorted({VOID, *self.values.ignore}),
            "label_map": {str(value): index for value, index in self.values.mapping.items()},
            "not_followed": list(self.not_followed),
        }


def picture_rules(recipe: Recipe | None, loaded: LoadedModel) -> PictureRules:
    """Settle how the pictures and labels of a model are read.

    Args:
        recipe: goes first, in every key that it says.
        loaded: the model; its image processor goes second, with the class that its configuration
            ignores (``semantic_loss_ignore_index``).

    Raises:
        InputError: if the processor's settings cannot be meant, or cannot be followed.
    """
    said = None if recipe is None else recipe.data
    processor = _read(loaded.processor)
    preprocessing = preprocessing_of(recipe, loaded.processor)
    reduce = None if said is None else said.reduce_labels
    mapping = {} if said is None or said.label_map is None else said.label_map
    if reduce is None:
        reduce = processor is not None and processor.reduce_labels and not mapping
    own = getattr(getattr(loaded.module, "config", None), "semantic_loss_ignore_index", VOID)
    ignore = None if said is None else said.ignore_index
    notes = []
    if processor is not None:
        notes.append(_tell(loaded, processor, preprocessing, reduce=reduce))
    if ignore is None:
        ignore = own if isinstance(own, int) and 0 <= own <= VOID else VOID
        if ignore != VOID:
            notes.append(
                f"class {ignore} is ignored, as semantic_loss_ignore_index of {loaded.name} says; "
                f"data.ignore_index: {VOID} in a recipe counts it"
            )
    values = LabelValues(
        ignore=(ignore,) if isinstance(ignore, int) else tuple(ignore),
        reduce=reduce,
        mapping=dict(mapping),
    )
    not_followed = () if processor is None else processor.not_followed
    return PictureRules(preprocessing, values, processor is not None, not_followed, tuple(notes))


def whole_picture_rules(recipe: Recipe | None, loaded: LoadedModel) -> PictureRules:
    """Settle how pictures go into a model that says one thing of the whole picture.

    The middle is cut out where the processor does so. Where nobody says a size, it is that of the
    model's example.

    Args:
        recipe: goes first, in every key that it says.
        loaded: the model; its image processor goes second.

    Raises:
        InputError: if the processor's settings cannot be meant, or cannot be followed.
    """
    own = _read(loaded.processor)
    preprocessing = preprocessing_of(recipe, loaded.processor)
    said = None if recipe is None else recipe.data
    notes = []
    if said is None or said.resize is None:
        crop = None if loaded.processor is None else center_crop_of(loaded.processor)
        preprocessing = replace(preprocessing, crop=crop)
    if own is not None:
        notes.append(_tell(loaded, own, preprocessing, reduce=own.reduce_labels, whole=True))
    sizes = [tuple(t.shape[-2:]) for t in loaded.example.tensors if t.dim() == 4]
    if preprocessing.resize is None and (said is None or said.resize is None) and sizes:
        height, width = sizes[0]
        preprocessing = replace(preprocessing, resize=Resize(height=height, width=width))
        notes.append(
            f"nothing says how large pictures are to be: they go into {loaded.name} at "
            f"{width}x{height} pixels, {preprocessing.describe().split(', at')[0]}; data.resize, "
            "data.mean and data.std in a recipe change it"
        )
    not_followed = () if own is None else _but_for_crop(own.not_followed)
    return PictureRules(
        preprocessing, LabelValues(), own is not None, not_followed, tuple(notes), labelled=False
    )


def preprocessing_of(
    recipe: Recipe | None, processor: Mapping[str, Any] | None = None
) -> Preprocessing:
    """Return how pictures go into a model, without what becomes of labels.

    Args:
        recipe: goes first, in every key that it says; its windows are of pictures at full size.
        processor: settings of the model's own image processor.

    Raises:
        InputError: if the settings cannot be meant, or cannot be followed.
    """
    own = _read(processor)
    result = Preprocessing()
    if own is not None:
        result = Preprocessing(mean=own.mean, std=own.std, resize=own.resize)
    said = None if recipe is None else recipe.data
    if said is None:
        return result
    resize = result.resize
    if said.resize == "full" or (said.resize is None and said.window is not None):
        resize = None
    elif isinstance(said.resize, tuple):
        resize = Resize(height=said.resize[0], width=said.resize[1])
    return replace(
        result,
        mean=said.mean or result.mean,
        std=said.std or result.std,
        resize=resize,
        window=said.window,
    )


def processor_of(model: nn.Module) -> Mapping[str, Any] | None:
    """Return the image processor's settings that a model was loaded with, where they are known."""
    try:
        return provenance_of(model).processor
    except UsageError:  # nothing at all is known of it
        return None


def _read(processor: Mapping[str, Any] | None) -> ImageProcessor | None:
    return None if processor is None else read_processor(processor)


def _but_for_crop(not_followed: tuple[str, ...]) -> tuple[str, ...]:
    """Leave out what is said of crops: where the whole picture has a label, they are followed."""
    return tuple(text for text in not_followed if "crop" not in text)


def _tell(
    loaded: LoadedModel,
    own: ImageProcessor,
    preprocessing: Preprocessing,
    *,
    reduce: bool,
    whole: bool = False,
) -> str:
    """Say what of a model's own settings is followed, what the recipe changes, and what is not."""
    reduced = "; label 0 is ignored and label 1 is the first class"
    labels = reduced if reduce and not whole else ""
    text = f"{PROCESSOR_FILE} of {loaded.name} is followed: {preprocessing.describe()}{labels}"
    otherwise = [
        name
        for name, ours, theirs in (
            ("mean", preprocessing.mean, own.mean),
            ("std", preprocessing.std, own.std),
            ("size", preprocessing.resize, own.resize),
            ("reduce_labels", reduce, own.reduce_labels),
        )
        if ours != theirs
    ]
    if otherwise:
        text += f"; the recipe says otherwise of {', '.join(otherwise)}"
    not_followed = _but_for_crop(own.not_followed) if whole else own.not_followed
    if not_followed:
        text += f"; not followed: {', '.join(not_followed)}"
    return text
