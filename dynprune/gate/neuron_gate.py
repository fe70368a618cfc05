"""The gate of one neuron group: which neurons an input keeps, and the values that they carry."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dynprune.gate.call import (
    Call,
    GatedNeurons,
    Observation,
    Scope,
    forced_output,
    is_observed,
    tell,
)
from dynprune.gate.config import Execution, GateConfig
from dynprune.gate.heads import HeadWidth, set_head_widths
from dynprune.gate.instances import InstanceLayout
from dynprune.gate.predictor import (
    GatePredictor,
    make_own_predictor,
    pool_tokens,
    pooled_width,
)
from dynprune.gate.selection import GateOutput, Selection, select
from dynprune.gate.token_predictor import (
    LowRankPredictor,
    PreactivationPredictor,
    ProjectionPredictor,
)
from dynprune.gate.topr import kept_count

__all__ = ["NeuronGate"]

LEAST_HIDDEN = 8  # neurons of a predictor's hidden layer
LEAST_BETA = 1e-3  # by which a predictor learns at least


class NeuronGate(nn.Module):
    r"""Choose, for every input instance, the neurons of one group that are computed.

    .. math::
        s = p + f(z), \qquad g = 1 + \beta f(z), \qquad
        M_j = g_j \, [\, j \in \mathrm{Top}_r(s) \,]

    with z the pooled input, f the predictor, p the base score and M the mask. A fresh gate has
    f = 0 and a calibrated one beta = 0, so that both keep values of 1: where nothing is skipped the
    model is the dense one. What it chose belongs to the
    call (`dynprune.gate.call.Call`); the module holds parameters and settings alone.

    Args:
        name: of the neuron group.
        kind: of the neuron group.
        in_features: width of the owner's input (or of its pre-activation).
        neurons: neurons of the group.
        heads: heads they fall into; 0 for none.
        config: how it is built.
        scope: of the model that the gate is put into; one of its own where None.
        layout: where the batch is in the owner's input.
        device: of the parameters.
        dtype: of the parameters.

    Attributes:
        prior: (neurons,) buffer; the base score, in units of f.
        mean: (neurons,) value that replaces skipped neurons at the consumer's input, or None.
        beta: scalar; how strongly f moves the values (``mode="value"``).
        members: the neurons, as the layers around the gate know them.
        verified: the mode in which this group proved right when it was inserted.
        slots: (width, m) buffer; the channels of a head, in the products of attention, that are
            each neuron of it. None where heads are not alike.

    Source: DynaSegFormer, arXiv 2111.09499, Eq. 1 to 3; the mean of skipped neurons from
    Variance-Based Pruning, arXiv 2507.12988.
    """

    prior: Tensor
    slots: Tensor | None

    def __init__(
        self,
        name: str,
        kind: str,
        in_features: int,
        neurons: int,
        heads: int,
        *,
        config: GateConfig,
        scope: Scope | None = None,
        layout: InstanceLayout | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.name, self.kind, self.neurons, self.heads = name, kind, neurons, heads
        self.config = config
        self.layout = layout or InstanceLayout()
        self.members = GatedNeurons(
            name, kind, neurons, max(1, heads), self.layout, scope or Scope(), self.per_token
        )
        self.widths: list[HeadWidth] = []
        self.partners: list[NeuronGate] = []
        self.verified: Execution = "masked"
        self.requested: Literal["compact", "masked"] = "compact"
        self.final_ratio = config.prune_ratio
        self.prune_ratio = 0.0
        self.predictor = _predictor(in_features, neurons, config, device, dtype)
        self.register_buffer("slots", None, persistent=False)
        self.register_buffer("prior", torch.zeros(neurons, device=device, dtype=dtype))
        if config.mode == "value" and self.predictor is not None:
            # A predictor of the user's own need not start as zero; its factor then does.
            own = config.predictor is not None or config.predict != "low-rank"
            start = torch.zeros if own else torch.ones
            self.beta = nn.Parameter(start((), device=device, dtype=dtype))
        self.mean: nn.Parameter | None = None
        if config.compensation != "zero" and kind != "qk":
            zeros = torch.zeros(neurons, device=device, dtype=dtype)
            self.mean = nn.Parameter(zeros, requires_grad=config.compensation == "learned")
        self.set_prune_ratio(config.prune_ratio)

    def set_prune_ratio(self, ratio: float) -> None:
        """Set the share of neurons that is skipped from now on, in place."""
        kept_count(self.width, ratio, self.config.align)  # raises before anything changes
        self.prune_ratio = ratio
        self.sync()

    def sync(self) -> None:
        """Bring the host's head widths in line with what the gate keeps, in place."""
        kept = self.kept if self.running == "compact" else None
        set_head_widths(self.widths, kept, self.segments)

    def train(self, mode: bool = True) -> "NeuronGate":
        """Switch between masked execution (training) and the requested one, in place."""
        super().train(mode)
        self.sync()
        return self

    def choose(
        self,
        tokens: Tensor,
        call: Call,
        source: Tensor | None = None,
        projection: Tensor | None = None,
    ) -> Selection:
        """Choose the neurons for the input that a producer is about to read, for this call.

        Args:
            tokens: (B, T, C) input of the owner (or its pre-activation).
            call: that runs; the selection is put into it.
            source: what the owner got; the tokens themselves where None.
            projection: (B, T, neurons) output of the owner, where the gate reads it.
        """
        instances, execution = tokens.shape[0], self.running
        real = call.real(tokens, source) if not self.per_token or is_observed() else None
        if self.per_token:  # every token is an instance of one token
            tokens = tokens.reshape(-1, 1, tokens.shape[-1])
            real = None if real is None else real.reshape(-1, 1)
        output = forced_output(self.members, tokens.shape[0])
        forced = output is not None
        if output is None:
            output = self._output(tokens, real, projection)
        elif self.config.mode != "value":
            output = GateOutput(output.scores, None)
        rows = output.scores.shape[0]
        if self.per_token and rows != 1 and not (forced and rows <= instances):
            execution = "masked"  # weights of its own for each of many tokens would cost more
        selection = select(output, self.kept, self.segments, mean=self.mean, execution=execution)
        call.selections[self.members] = selection
        if is_observed():
            tell(Observation(self.members, tokens, real, output, selection))
        return selection

    def _output(self, tokens: Tensor, real: Tensor | None, projection: Tensor | None) -> GateOutput:
        """Return scores and values, by whatever the gate reads."""
        if not self.per_token:
            return self.scores(tokens, real)
        if projection is not None:
            projection = projection.reshape(-1, projection.shape[-1])
        return self.scores_of(tokens.squeeze(1), projection)

    def scores(self, tokens: Tensor, real: Tensor | None = None) -> GateOutput:
        """Return scores and values for (B, T, C) tokens, of which those in ``real`` count."""
        if self.predictor is None:
            return GateOutput(self.prior.expand(tokens.shape[0], -1), None)
        return self.scores_of(pool_tokens(tokens, self.config.pool, real))

    def scores_of(self, summary: Tensor, projection: Tensor | None = None) -> GateOutput:
        """Return scores and values for (B, F) pooled inputs, or for tokens.

        Args:
            summary: what the predictor reads.
            projection: (B, neurons) gate projections of the tokens, where it reads those, too.
        """
        if self.predictor is None:
            return GateOutput(self.prior.expand(summary.shape[0], -1), None)
        f: Tensor
        if self.reads_projection:
            f = self.predictor(summary, projection)
        else:
            f = self.predictor(summary)
        f = f.to(self.prior.dtype)  # autocast makes it coarser
        factor = None
        if self.config.mode == "value":
            factor = 1.0 + self.beta * f
            if self.training and f.requires_grad:
                factor = factor + self._least_gradient() * (f - f.detach())
        return GateOutput(self.prior + f, factor)

    def _least_gradient(self) -> Tensor:
        """Return what the gradient of a value with respect to f gains, so that none is lost.

        Calibration starts beta at zero. The value's own gradient with respect to f is beta; where
        beta is less than `LEAST_BETA`, f learns as if it were that, and the value stays what it is.
        """
        beta = self.beta.detach()
        least = torch.where(beta < 0, -LEAST_BETA, LEAST_BETA).to(beta)
        return torch.where(beta.abs() < LEAST_BETA, least - beta, torch.zeros_like(beta))

    @property
    def running(self) -> Execution:
        """How the group runs now: masked while training or on request, else as verified."""
        masked = self.training or self.requested == "masked"
        return "masked" if masked else self.verified

    @property
    def per_token(self) -> bool:
        """Whether every token chooses for itself."""
        return self.config.grain == "token"

    @property
    def reads_projection(self) -> bool:
        """Whether it chooses by what its owner gives, which is then computed in full."""
        return isinstance(self.predictor, ProjectionPredictor)

    @property
    def segments(self) -> int:
        """Parts that each keep the same number of neurons: the heads, or 1."""
        return max(1, self.heads)

    @property
    def width(self) -> int:
        """Neurons of one segment."""
        return self.neurons // self.segments

    @property
    def kept(self) -> int:
        """Neurons that each segment keeps: gates that share a head's width keep equally many."""
        return max(gate.own_kept for gate in (self, *self.partners))

    @property
    def own_kept(self) -> int:
        """Neurons that each segment would keep if it were alone."""
        return kept_count(self.width, self.prune_ratio, self.config.align)

    @property
    def keep_ratio(self) -> float:
        """Share of the group's neurons that is kept, after rounding."""
        return self.kept / self.width

    @property
    def macs(self) -> int:
        """Multiply-adds of the gate for one input instance, or for one token that chooses."""
        return int(getattr(self.predictor, "macs", 0))

    def narrow_heads(
        self, widths: Sequence[HeadWidth], partners: Sequence["NeuronGate"] = ()
    ) -> None:
        """Let compact execution set these attributes of host modules, in place.

        Args:
            widths: the attributes; none gives the hosts their own values back.
            partners: the gates that narrow the same heads.
        """
        set_head_widths(self.widths, None, self.segments)
        self.widths = list(widths)
        self.partners = list(partners)
        self.sync()

    def extra_repr(self) -> str:
        """Show the group, what it keeps and how it runs."""
        return (
            f"{self.kind}, neurons={self.neurons}, heads={self.heads}, kept={self.kept} a segment, "
            f"{self.running}"
        )


def _predictor(
    in_features: int,
    neurons: int,
    config: GateConfig,
    device: torch.device | None,
    dtype: torch.dtype | None,
) -> nn.Module | None:
    """Make the predictor of a gate's configuration; None where no input plays a part."""
    if config.order != "dynamic":
        return None
    features = pooled_width(in_features, config.pool)
    if config.predictor is not None:
        return make_own_predictor(config.predictor, features, neurons, device=device, dtype=dtype)
    hidden = config.hidden or max(LEAST_HIDDEN, round(config.hidden_ratio * in_features))
    if config.grain == "token":
        return _token_predictor(in_features, neurons, hidden, config, device, dtype)
    return GatePredictor(features, neurons, hidden, device=device, dtype=dtype)


def _token_predictor(
    in_features: int,
    neurons: int,
    rank: int,
    config: GateConfig,
    device: torch.device | None,
    dtype: torch.dtype | None,
) -> nn.Module:
    if config.predict == "low-rank":
        return LowRankPredictor(in_features, neurons, rank, device=device, dtype=dtype)
    kind = PreactivationPredictor if config.predict == "preactivation" else ProjectionPredictor
    rank = 0 if config.predict == "gate-projection" else rank
    return kind(
        in_features, neurons, rank, config.activation or "identity", device=device, dtype=dtype
    )
