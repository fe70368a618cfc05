"""What a recipe says of pruning: which neurons are gated, how, and how many are skipped."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from dynprune.recipe.section import Pattern, Section, Share

__all__ = ["Apply", "Calibration", "Gate", "Schedule", "Sparsity", "Target"]


class Target(Section):
    """Neuron groups to gate, chosen by structure or by name."""

    kind: Literal["ffn", "qk", "v"] | None = None
    """Every group of this structure: hidden layers, queries with keys, or values."""

    match: Pattern | None = None
    """Every group with this name, or with `re:` whose whole name the expression matches."""

    keep_ratio: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Share of these groups' neurons kept at the end (fraction); default 1 - sparsity.final."""

    grain: Literal["instance", "token"] | None = None
    """Who chooses these groups' single neurons; default apply.gate.grain."""

    @model_validator(mode="after")
    def _check_choice(self) -> Self:
        if (self.kind is None) == (self.match is None):
            raise ValueError("give either kind or match")
        return self


class Gate(Section):
    """How each gate chooses the neurons of one input."""

    choose: Literal["neurons", "fixed", "experts", "auto"] = "neurons"
    """What is chosen: single neurons for every input; one set for all, with the rest of the neurons
    removed permanently from layers that stay plain; one of a few experts, each with a set and a
    consumer of its own (hidden layers; other groups are fixed); or, for each hidden layer, as many
    experts as held-back inputs show to be worth their bytes."""

    experts: PositiveInt | Literal["auto"] = "auto"
    """Experts of a hidden layer; `auto` is what held-back inputs show to be worth its bytes, and 1
    is one fixed set."""

    grain: Literal["instance", "token"] | None = None
    """Who chooses: each input for all of its tokens, or each token of a hidden layer for itself.
    Null is each input for neurons, and for experts tokens wherever they do not meet between the
    group's layers."""

    predict: Literal["low-rank", "preactivation", "gate-projection", "both"] = "low-rank"
    """What a token's choice is made of at grain token: a linear map of it; its preactivations,
    estimated by such a map, behind their activation; in a gated hidden layer (SwiGLU) the gate
    projection, which is computed whole; or both that and an estimate of the other projection."""

    mode: Literal["value", "straight_through"] = "value"
    """Kept neurons carry the gate's values, or 1 with the value's gradient."""

    hidden_ratio: Annotated[float, Field(gt=0.0, le=4.0)] = 0.0625
    """Width of the predictor's hidden layer, or its rank at grain token, as a share of the gated
    layer's input (fraction)."""

    hidden: PositiveInt | None = None
    """Width of the predictor's hidden layer (neurons), or its rank, whatever hidden_ratio says."""

    align: PositiveInt = 8
    """Each head or hidden layer keeps a multiple of this (neurons)."""

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

    masked: bool = False
    """Whether groups are gated that can only be masked, which costs the gate and saves nothing."""


class Calibration(Section):
    """The inputs that measure each neuron's mean and importance before training."""

    images: NonNegativeInt = 32
    """Training pictures run through the dense model when there is data (images)."""

    refit: bool | Literal["sequential"] = False
    """Whether what reads the neurons is refitted at the final prune ratio: each layer to its dense
    output, or in sequence to the dense stream, on what the pruned layers before it really give."""


class Apply(Section):
    """Which neuron groups are gated, and how."""

    target: Literal["macs", "latency"] = "macs"
    """What is saved: multiply-adds, or time here, where gates that do not pay stay out and counts
    are rounded as is fastest."""

    targets: tuple[Target, ...] = Field(min_length=1)
    """What is gated; the first target that matches a group decides its keep_ratio."""

    ignore: tuple[Pattern, ...] = ()
    """Groups never gated: a name, or `re:` and an expression for the whole name."""

    gate: Gate = Gate()
    """How each gate chooses."""

    calibration: Calibration = Calibration()
    """What each gate starts from."""

    drop_dead: bool = False
    """Whether hidden neurons that never matter on the data (type III) first go for good."""

    @model_validator(mode="after")
    def _check_token(self) -> Self:
        gate = self.gate
        if gate.choose != "neurons":
            if gate.predict != "low-rank" or any(target.grain for target in self.targets):
                raise ValueError(f"predict and targets' grain are not for choose: {gate.choose}")
            return self
        grains = {target.grain or gate.grain or "instance" for target in self.targets}
        if "token" not in grains:
            if gate.predict != "low-rank":
                raise ValueError(f"gate.predict: {gate.predict} is for gate.grain: token")
            return self
        keys = (("order", "dynamic"), ("input", "tokens"), ("pool", "mean"))
        for key, only in keys[: 3 if grains == {"token"} else 1]:
            if getattr(gate, key) != only:
                raise ValueError(f"gate.{key}: {getattr(gate, key)} has no effect at grain token")
        return self


class Schedule(Section):
    """How the prune ratio grows from 0 to its end over the training steps."""

    type: Literal["linear", "cubic", "cosine", "constant"] = "linear"
    """Shape of the growth; `constant` starts at the final ratio."""

    end_step: PositiveInt | None = None
    """Step at which the final ratio is reached (steps); null for half of all steps."""


class Sparsity(Section):
    """How many neurons are skipped."""

    final: Share
    """Share of each group's neurons that ends up pruned (fraction; the paper's r)."""

    distribution: Literal["uniform", "sensitivity"] = "uniform"
    """Whether every group skips that share, or what it saves (multiply-adds, or the time measured
    here, by `apply.target`) is spread by what each group costs the output on calibration's
    inputs."""

    schedule: Schedule = Schedule()
    """How the share grows."""
