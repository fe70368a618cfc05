"""How the gate of a group is built: plain values that recipes and files hold."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

from torch import Tensor

from dynprune.gate.predictor import Pool, PredictorFactory

__all__ = [
    "Compensation",
    "Execution",
    "GateConfig",
    "GateMode",
    "Grain",
    "Importance",
    "Order",
    "Predict",
]

Execution = Literal["compact", "scatter", "masked"]
GateMode = Literal["value", "straight_through"]
Order = Literal["dynamic", "fixed", "prefix", "random"]
Compensation = Literal["zero", "mean", "learned"]
Grain = Literal["instance", "token"]
Predict = Literal["low-rank", "preactivation", "gate-projection", "both"]

Importance = Callable[[Any], Tensor]
"""From the moments of a group's neurons (`dynprune.measure.moments.NeuronMoments`) to what each is
worth: (n, neurons) on each input, or (neurons,) on all of them alike; positive where it matters."""

_FUNCTIONS = ("predictor", "importance")


@dataclass(frozen=True)
class GateConfig:
    """How the gate of a group is built: plain values, and functions of the user's own.

    Attributes:
        prune_ratio: share of the group's neurons that ends up skipped, 0 to 1.
        mode: ``value``: kept neurons carry the gate's value (DynaSegFormer, Eq. 3);
            ``straight_through``: they carry 1, and the gradient passes by a sigmoid of the score.
        hidden_ratio: width of the predictor's hidden layer over the producer's input width; at
            least 8 neurons.
        hidden: that width in neurons, whatever ``hidden_ratio`` says; None to go by it.
        align: kept neurons of a segment are a multiple of this.
        source: what the predictor pools: the producer's ``tokens`` or its ``preactivation``.
        pool: how tokens are summarised.
        compensation: what skipped neurons are replaced by: ``zero``, their ``mean``, or a value
            that starts at the mean and is ``learned``. Needs a consumer, so not for ``qk``.
        order: ``dynamic`` by score; the controls are ``fixed`` (by prior alone), ``prefix`` (the
            first neurons) and ``random`` (one fixed random set).
        predictor: makes the predictor; dynprune's own where None. No file holds it.
        importance: of neurons, by which calibration orders them; how far the output moves without
            them where None. No file holds it.
        masked: whether the group is gated even where its neurons can only be masked, which costs
            the gate and saves nothing.
        grain: who chooses: each input ``instance`` for all of its tokens, or each ``token`` for
            itself, which a hidden layer that mixes no tokens allows.
        predict: what a token's scores are made of: a ``low-rank`` linear map of it; its
            ``preactivation`` estimated by such a map, through the layer's own activation; the
            ``gate-projection`` of a gated hidden layer (SwiGLU); or ``both`` that and an estimate
            of the other projection. ``low-rank`` alone where each instance chooses. ``hidden`` or
            ``hidden_ratio`` is the rank.
        activation: what the preactivation or the gate projection passes through, as running
            showed; set when the gate is put in.
    """

    prune_ratio: float = 0.5
    mode: GateMode = "value"
    hidden_ratio: float = 0.0625
    hidden: int | None = None
    align: int = 8
    source: Literal["tokens", "preactivation"] = "tokens"
    pool: Pool = "mean"
    compensation: Compensation = "mean"
    order: Order = "dynamic"
    predictor: PredictorFactory | None = None
    importance: Importance | None = None
    masked: bool = False
    grain: Grain = "instance"
    predict: Predict = "low-rank"
    activation: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the fields that are plain values."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _FUNCTIONS}
