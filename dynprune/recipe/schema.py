"""What a recipe may say: one frozen model a section, a sentence and a unit under each field."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

__all__ = [
    "SCHEMA",
    "Apply",
    "Calibration",
    "Data",
    "FeatureLoss",
    "Gate",
    "LabelLoss",
    "LearningRate",
    "Model",
    "Optimizer",
    "Penalty",
    "Recipe",
    "Runtime",
    "Schedule",
    "Section",
    "SoftLabelLoss",
    "Sparsity",
    "Stage",
    "Target",
]

SCHEMA = "dynprune/1"

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Size = Annotated[tuple[PositiveInt, PositiveInt], "(height, width)"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]


def _check_pattern(text: str) -> str:
    """Refuse an empty pattern, and a regular expression that does not compile."""
    if not text:
        raise ValueError("is empty; write a group's name, or 're:' and a regular expression")
    if text.startswith("re:"):
        try:
            re.compile(text[3:])
        except re.error as error:
            raise ValueError(f"is not a regular expression: {error}") from None
    return text


Pattern = Annotated[str, Field(max_length=500), AfterValidator(_check_pattern)]


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values never change type, nothing mutates."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


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

    input: tuple[PositiveInt, ...] = Field(min_length=2, max_length=5)
    """Shape of one call: [B, 3, H, W] pictures in pixels, or [B, N] token ids."""

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            raise ValueError("config must name its model_type, such as model_type: segformer")
        if (self.config is None) != (self.architecture is None):
            raise ValueError("config and architecture go together: give both or neither")
        if self.source == "factory" and self.factory is None:
            raise ValueError("source: factory needs factory: module:function")
        if self.source == "transformers" and self.factory is not None:
            raise ValueError("factory needs source: factory")
        return self


class Target(Section):
    """Neuron groups to gate, chosen by structure or by name."""

    kind: Literal["ffn", "qk", "v"] | None = None
    """Every group of this structure: hidden layers, queries with keys, or values."""

    match: Pattern | None = None
    """Every group with this name, or with `re:` whose whole name the expression matches."""

    keep_ratio: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Share of these groups' neurons kept at the end (fraction); default 1 - sparsity.final."""

    @model_validator(mode="after")
    def _check_choice(self) -> Self:
        if (self.kind is None) == (self.match is None):
            raise ValueError("give either kind or match")
        return self


class Gate(Section):
    """How each gate chooses the neurons of one input."""

    mode: Literal["value", "straight_through"] = "value"
    """Kept neurons carry the gate's values, or 1 with the value's gradient."""

    hidden_ratio: Annotated[float, Field(gt=0.0, le=4.0)] | None = None
    """Width of the predictor's hidden layer as a share of the group's neurons (fraction)."""

    hidden: PositiveInt | None = None
    """Width of the predictor's hidden layer (neurons), instead of hidden_ratio."""

    align: PositiveInt = 16
    """Kept counts are multiples of this (neurons)."""

    input: Literal["tokens", "preactivation"] = "tokens"
    """What is pooled for the predictor: the layer's input, or its output before activation."""

    pool: Literal["mean", "mean-std", "mean-max"] = "mean"
    """Statistics over an input's tokens that the predictor sees."""

    compensation: Literal["zero", "mean", "learned"] = "mean"
    """Where a skipped neuron stands: at zero, at its calibrated mean, or at a trained value."""

    start: Literal["informed", "fresh"] = "informed"
    """Whether calibration's statistics or random weights order the neurons at first."""

    order: Literal["dynamic", "fixed", "prefix", "random"] = "dynamic"
    """Whose order is kept: each input's own, or a control that ignores the input."""

    @model_validator(mode="after")
    def _check_width(self) -> Self:
        if self.hidden is not None and self.hidden_ratio is not None:
            raise ValueError("give hidden or hidden_ratio, not both")
        return self


class Calibration(Section):
    """The inputs that measure each neuron's mean and energy before training."""

    images: NonNegativeInt = 32
    """Training pictures run through the dense model when there is data (images)."""


class Apply(Section):
    """Which neuron groups are gated, and how."""

    targets: tuple[Target, ...] = Field(min_length=1)
    """What is gated; the first target that matches a group decides its keep_ratio."""

    ignore: tuple[Pattern, ...] = ()
    """Groups never gated: a name, or `re:` and an expression for the whole name."""

    gate: Gate = Gate()
    """How each gate chooses."""

    calibration: Calibration = Calibration()
    """What each gate starts from."""


class Schedule(Section):
    """How the prune ratio grows from 0 to its end over the training steps."""

    type: Literal["linear", "cubic", "cosine"] = "linear"
    """Shape of the growth."""

    end_step: PositiveInt | None = None
    """Step at which the final ratio is reached (steps); null for the first stage's last one."""


class Sparsity(Section):
    """How many neurons are skipped."""

    final: Share
    """Share of each group's neurons that ends up pruned (fraction; the paper's r)."""

    schedule: Schedule = Schedule()
    """How the share grows."""


class Penalty(Section):
    """A term of the loss in every stage that does not look at the teacher."""

    type: Literal["gate_l1"]
    """`gate_l1`: the sum over gates of the L1 norm of their values."""

    weight: NonNegativeFloat
    """Factor of the term in the loss."""


class Data(Section):
    """How pictures and labels become batches."""

    crop: Size
    """Training crop [height, width] (pixels)."""

    scale: tuple[PositiveFloat, PositiveFloat] = (0.5, 2.0)
    """Bounds of the random resize before the crop (factor)."""

    flip: Fraction = 0.5
    """Probability of a horizontal flip (fraction)."""

    photometric: bool = True
    """Whether brightness, contrast, saturation and hue vary."""

    ignore_index: Annotated[int, Field(ge=0, le=255)] = 255
    """Label value that no loss and no metric sees (class index)."""

    classes: PositiveInt
    """Classes that the labels hold (count)."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of the red, green and blue channels (fraction of full brightness)."""

    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)
    """Standard deviation of the channels (fraction of full brightness)."""

    window: Size | None = None
    """Sliding window [height, width] of evaluation (pixels); null for whole pictures."""

    @model_validator(mode="after")
    def _check_scale(self) -> Self:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale {list(self.scale)} must be [smallest, largest]")
        if self.classes > 255:
            raise ValueError(f"classes={self.classes}, but labels are bytes: at most 255")
        return self


class FeatureLoss(Section):
    """The student's feature maps against the teacher's."""

    type: Literal["mse", "normalized_mse", "cosine", "cwd"]
    """Distance: squared error, squared error over the teacher's power, angle, or channel-wise."""

    on: Literal["encoder_stages"] = "encoder_stages"
    """Which maps: the output of every encoder stage."""

    weight: NonNegativeFloat = 1.0
    """Factor of the term in the loss."""

    temperature: PositiveFloat = 1.0
    """Softens the distributions of `cwd` (logits are divided by it)."""


class LabelLoss(Section):
    """The student's logits against the labels."""

    type: Literal["ce"]
    """Cross entropy."""

    weight: NonNegativeFloat = 1.0
    """Factor of the term in the loss."""


class SoftLabelLoss(Section):
    """The student's logits against the teacher's."""

    type: Literal["soft_ce"]
    """Cross entropy with the teacher's softened probabilities."""

    weight: NonNegativeFloat = 1.0
    """Factor of the term in the loss."""

    temperature: PositiveFloat = 1.0
    """Softens both distributions (logits are divided by it)."""


Loss = Annotated[FeatureLoss | LabelLoss | SoftLabelLoss, Field(discriminator="type")]


class Stage(Section):
    """One stretch of training with losses of its own."""

    name: Name
    """Word that `--stage` and the records use."""

    steps: PositiveInt
    """Length (optimizer steps)."""

    losses: tuple[Loss, ...] = Field(min_length=1)
    """Terms of the stage's loss, added up."""


class Optimizer(Section):
    """What follows the gradient."""

    type: Literal["adamw"] = "adamw"
    """Algorithm."""

    lr: PositiveFloat
    """Peak learning rate (per step)."""

    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay; norms and biases have none."""

    gate_lr_factor: PositiveFloat = 1.0
    """Learning rate of the gates' predictors as a multiple of lr (factor)."""


class LearningRate(Section):
    """How the learning rate changes over all steps."""

    type: Literal["poly", "constant"] = "poly"
    """`poly`: (1 - step / steps) ** power; `constant`: the peak throughout."""

    power: NonNegativeFloat = 1.0
    """Exponent of `poly`."""

    warmup_steps: NonNegativeInt = 0
    """Linear rise to the peak at the start (steps)."""


class Runtime(Section):
    """How the run is executed; nothing here changes what is asked of the model."""

    seed: NonNegativeInt = 0
    """Seed of weights, data order and augmentation."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward and backward pass."""

    batch_size: PositiveInt = 16
    """Pictures per optimizer step, micro-batches and processes together (images)."""

    accumulate: PositiveInt = 1
    """Micro-batches that an optimizer step is split into (count)."""

    clip_norm: PositiveFloat | None = None
    """Largest norm of the gradient; null for no clipping."""

    ema: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Decay of an exponential moving average of the weights (per step); null for none."""

    save_every: PositiveInt = 4000
    """Distance of checkpoints (steps)."""

    validate_every: PositiveInt = 4000
    """Distance of validations (steps)."""

    keep_checkpoints: PositiveInt = 2
    """Checkpoints kept beside the best one (count)."""

    threads: PositiveInt | None = None
    """CPU threads; null for PyTorch's choice."""

    gradient_checkpointing: bool = False
    """Whether activations are computed twice to save memory."""

    @model_validator(mode="after")
    def _check_batch(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of accumulate={self.accumulate}"
            )
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

    rewrite: tuple[Literal["fold-decoder"], ...] = ()
    """Lossless rewrites, in order."""

    apply: Apply
    """Which neurons are gated."""

    sparsity: Sparsity
    """How many neurons are skipped."""

    penalties: tuple[Penalty, ...] = ()
    """Terms of the loss in every stage."""

    data: Data | None = None
    """Pictures; null for a recipe that only applies."""

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
        if self.stages and self.data is None:
            problems.append("data: is missing, and stages need it")
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
        """Give the recipe as plain YAML values under the names that a file uses."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
