"""What a recipe may say, as a whole: one frozen model a section, a sentence and a unit a field."""

from math import prod
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, PositiveFloat, PositiveInt, model_validator

from dynprune.recipe.pruning import Apply, Sparsity
from dynprune.recipe.section import Fraction, Name, Section, Size
from dynprune.recipe.training import LearningRate, Optimizer, Penalty, Runtime, Stage
from dynprune.tasks.names import TASKS

__all__ = ["SCHEMA", "Data", "Model", "Recipe", "Text"]

SCHEMA = "dynprune/1"


_Deviation = Annotated[float, Field(ge=1e-3, le=1e3)]
_Label = Annotated[int, Field(ge=0, le=255)]
_MOST_VALUES = 2**28  # of one call's input; 8192 x 8192 pixels in colour are fewer


class Model(Section):
    """Which model the recipe is for, and how to build it where no weights are at hand."""

    source: Literal["transformers", "factory"] = "transformers"
    """Where the architecture comes from: the transformers library, or a Python function."""

    weights: str | None = None
    """Default teacher: a transformers directory or hub name; null where the user must name one."""

    architecture: str | None = None
    """Class of the transformers library that `config` builds."""

    config: dict[str, JsonValue] | None = None
    """Arguments of the transformers configuration, `model_type` among them."""

    factory: str | None = None
    """`module:function` that the user must type as MODEL; a recipe never imports code itself."""

    input: Annotated[tuple[PositiveInt, ...], Field(min_length=2, max_length=5)] | None = None
    """Shape of a call: [B, 3, H, W] in pixels, or [B, N] token ids; null for the model's own."""

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            raise ValueError("config must name its model_type, such as model_type: segformer")
        if (self.config is None) != (self.architecture is None):
            raise ValueError("config and architecture go together: give both or neither")
        if self.input is not None and prod(self.input) > _MOST_VALUES:
            raise ValueError(f"input {list(self.input)} holds more than {_MOST_VALUES} values")
        if self.source == "factory" and self.factory is None:
            raise ValueError("source: factory needs factory: module:function")
        if self.source == "transformers" and self.factory is not None:
            raise ValueError("factory needs source: factory")
        return self


class Data(Section):
    """How samples and labels are read, and how they become batches."""

    task: Name | None = None
    """What the model is for: `segmentation`, `classification`, `features` (of pictures without
    labels), `text`, or `any` (calls of a function that you type); null for what --data tells."""

    crop: Size | None = None
    """Training crop [height, width] (pixels); segmentation's stages need it, others default to the
    size that is evaluated."""

    scale: tuple[PositiveFloat, PositiveFloat] = (0.5, 2.0)
    """Bounds of the random resize before the crop (factor)."""

    area: tuple[Fraction, Fraction] | None = None
    """Bounds of a random crop's share of a picture that has no label map (fraction of the area);
    null for [0.35, 1]."""

    flip: Fraction = 0.5
    """Probability of a horizontal flip (fraction)."""

    photometric: bool = True
    """Whether brightness, contrast, saturation and hue vary."""

    ignore_index: _Label | tuple[_Label, ...] | None = None
    """Classes that no loss and no metric sees besides 255 (class index); null for the model's."""

    label_map: dict[_Label, _Label] | None = None
    """Class index of each value in the label maps, such as {255: 1}; 255 is ignored."""

    reduce_labels: bool | None = None
    """Whether values count from 1 and 0 is ignored; null for what the model's processor says."""

    classes: PositiveInt | None = None
    """Classes that the labels hold (count); null for those of the data set, or of the model."""

    class_weights: Literal["inverse-root"] | tuple[PositiveFloat, ...] | None = None
    """Weight of each class in `ce` (factor); `inverse-root` of its share of the training pixels."""

    mean: tuple[Fraction, Fraction, Fraction] | None = None
    """Mean of red, green and blue (fraction of full brightness); null for the model's own."""

    std: tuple[_Deviation, _Deviation, _Deviation] | None = None
    """Standard deviation of the channels (likewise); null for the model's own, or ImageNet's."""

    resize: Size | Literal["full"] | None = None
    """Size [height, width] of evaluated pictures (pixels), or `full`; null for the model's own."""

    window: Size | None = None
    """Sliding window [height, width] of evaluation (pixels); null for whole pictures."""

    @model_validator(mode="after")
    def _check_scale(self) -> Self:
        if self.task is not None and self.task not in TASKS:
            raise ValueError(f"task {self.task!r} is not one of {', '.join(TASKS)}")
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale {list(self.scale)} must be [smallest, largest]")
        if self.area is not None and not 0 < self.area[0] <= self.area[1]:
            raise ValueError(f"area {list(self.area)} must be [smallest, largest], over 0")
        if self.classes is not None and self.classes > 255 and self.is_segmentation:
            raise ValueError(f"classes={self.classes}, but labels are bytes: at most 255")
        weights = self.class_weights
        if isinstance(weights, tuple) and len(weights) != self.classes:
            raise ValueError(f"{len(weights)} class_weights, but classes={self.classes}")
        return self

    @property
    def is_segmentation(self) -> bool:
        """Whether label maps are read, as far as the recipe tells."""
        return self.task in (None, "segmentation")

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        if self.label_map and self.reduce_labels:
            raise ValueError(
                "label_map and reduce_labels both say what values mean; write all of it into "
                "label_map"
            )
        return self


class Text(Section):
    """How sentences become batches; there are no labels, so losses compare with the teacher."""

    tokens: tuple[PositiveInt, PositiveInt] = (8, 64)
    """Shortest and longest sentence (tokens); others are left out."""

    @model_validator(mode="after")
    def _check_tokens(self) -> Self:
        if self.tokens[0] > self.tokens[1]:
            raise ValueError(f"tokens {list(self.tokens)} must be [shortest, longest]")
        return self


class Recipe(Section):
    """A whole recipe: what is pruned, by how much, and how the student learns."""

    schema_version: Literal["dynprune/1"] = Field(alias="schema")
    """Version of this format."""

    name: Name
    """What the recipe calls itself."""

    description: str = ""
    """One sentence for `dynprune recipe list`."""

    model: Model
    """Which model."""

    rewrite: tuple[Literal["fold-decoder", "channels-last", "unpack-attention"], ...] = ()
    """Lossless rewrites, in order."""

    apply: Apply
    """Which neurons are gated."""

    sparsity: Sparsity
    """How many neurons are skipped."""

    penalties: tuple[Penalty, ...] = ()
    """Terms of the loss in every stage."""

    data: Data | None = None
    """Pictures; null for a recipe that only applies, or learns from text."""

    text: Text | None = None
    """Sentences, in the place of pictures."""

    stages: tuple[Stage, ...] = ()
    """Training in sequence; none for a recipe that only applies."""

    optimizer: Optimizer | None = None
    """What follows the gradient; needed by stages."""

    lr_schedule: LearningRate = LearningRate()
    """How the learning rate changes."""

    runtime: Runtime = Runtime()
    """How the run is executed."""

    @property
    def steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    @model_validator(mode="after")
    def _check_training(self) -> Self:
        names = [stage.name for stage in self.stages]
        problems = []
        if len(set(names)) < len(names):
            problems.append(f"stages: names must differ, found {', '.join(names)}")
        if self.stages and self.optimizer is None:
            problems.append("optimizer: is missing, and stages need it")
        if self.stages and self.data is None and self.text is None:
            problems.append("data: is missing, and stages need it")
        segments = self.data is not None and self.data.is_segmentation
        if self.stages and segments and self.data is not None and self.data.crop is None:
            problems.append(
                "data.crop: is missing, and stages need it (unless data.task is another one than "
                "segmentation)"
            )
        if self.data is not None and self.text is not None:
            problems.append(
                "text: a recipe learns from pictures (data) or from text, not from both"
            )
        end = self.sparsity.schedule.end_step
        if self.stages and end is not None and end > self.steps:
            problems.append(
                f"sparsity.schedule.end_step: {end} lies behind the last of {self.steps} steps, "
                "so sparsity.final would never be reached; lower it, or leave it out"
            )
        if self.stages and self.lr_schedule.warmup_steps >= self.steps:
            problems.append(
                f"lr_schedule.warmup_steps: {self.lr_schedule.warmup_steps} is not less than "
                f"the {self.steps} steps of all stages"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def to_data(self) -> dict[str, Any]:
        """Return the recipe as plain YAML values under the names that a file uses."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
