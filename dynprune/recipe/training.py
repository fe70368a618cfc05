"""What a recipe says of training: stages with their losses, the optimizer, and the run."""

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from dynprune.recipe.section import ModulePattern, Name, Section, Share

__all__ = [
    "FeatureLoss",
    "LabelLoss",
    "LearningRate",
    "Optimizer",
    "Penalty",
    "Runtime",
    "SoftLabelLoss",
    "Stage",
]


class Penalty(Section):
    """A term of the loss in every stage that does not look at the teacher."""

    type: Literal["gate_l1"]
    """`gate_l1`: the sum over gates of the L1 norm of their values."""

    weight: NonNegativeFloat
    """Factor of the term in the loss."""


class FeatureLoss(Section):
    """The student's feature maps against the teacher's."""

    type: Literal["mse", "normalized_mse", "cosine", "cwd"]
    """Distance: squared error, squared error over the teacher's power, angle, or channel-wise."""

    on: (
        Literal["encoder_stages", "logits", "embedding", "outputs", "group_outputs"] | ModulePattern
    ) = "encoder_stages"
    """Which maps: of every encoder stage, the logits, a text's embedding, all outputs, what every
    gated group gives to the rest of the model, or `re:` modules."""

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

    betas: tuple[Share, Share] = (0.9, 0.999)
    """Decays of the first and second moment (per step)."""

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

    per: Literal["run", "stage"] = "run"
    """Whether one curve spans all stages, or each stage has its own."""


class Runtime(Section):
    """How the run is executed, reported and saved."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
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

    batchnorm: Literal["live", "frozen"] = "live"
    """Whether batch norms follow each micro-batch, or keep the teacher's statistics."""

    dropout: Literal["live", "off"] = "live"
    """Whether dropout and stochastic depth act in training as the model's configuration says."""

    workers: NonNegativeInt = 0
    """Processes that prepare batches ahead (count); the batches are the same for any."""

    log_every: PositiveInt = 10
    """Distance of records in metrics.jsonl (steps)."""

    tensorboard: bool = False
    """Whether to write TensorBoard's files too."""

    save_every: PositiveInt = 4000
    """Distance of checkpoints (steps)."""

    validate_every: PositiveInt = 4000
    """Distance of validations (steps)."""

    keep_checkpoints: PositiveInt = 2
    """Checkpoints kept beside the best one (count)."""

    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
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
