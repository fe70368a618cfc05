"""The gate of one neuron group: scores, selection, values, and the means of skipped neurons."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dynprune.errors import GateError, UsageError
from dynprune.gate.instances import CallRecorder, InstanceLayout
from dynprune.gate.predictor import GatePredictor, Pool, pool_tokens, pooled_width
from dynprune.gate.topr import keep_mask, kept_count, top_r

__all__ = ["Execution", "GateConfig", "GateMode", "NeuronGate", "Order", "Selection"]

Execution = Literal["compact", "scatter", "masked"]
GateMode = Literal["value", "straight_through"]
Order = Literal["dynamic", "fixed", "prefix", "random"]
LEAST_HIDDEN = 8  # neurons of a predictor's hidden layer

Compensation = Literal["zero", "mean", "learned"]


@dataclass(frozen=True)
class GateConfig:
    """How the gate of a group is built; all plain values.

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
        compensation: where skipped neurons stand: at ``zero``, at their ``mean``, or at a value
            that starts at the mean and is ``learned``. Needs a consumer, so not for ``qk``.
        order: ``dynamic`` by score; the controls are ``fixed`` (by prior alone), ``prefix`` (the
            first neurons) and ``random`` (one fixed random set).
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

    def to_json(self) -> dict[str, Any]:
        """Give the fields as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Selection:
    """What a gate chose for the batch that runs.

    Attributes:
        index: (B, K) kept neurons, ascending; what compact execution gathers by.
        value: (B, K) factors of the kept neurons, or None where they are all 1.
        mask: (B, neurons) factor of every neuron, 0 where skipped, or None outside masked
            execution. It carries the gradient.
    """

    index: Tensor
    value: Tensor | None
    mask: Tensor | None


@dataclass
class HeadWidth:
    """An integer attribute of a host module that says how wide the heads are.

    Attributes:
        module: the host.
        attribute: its name.
        dense: its value at full width.
        per_head: whether it is the width of one head; otherwise that of all heads together.
    """

    module: nn.Module
    attribute: str
    dense: int
    per_head: bool


@dataclass
class GateState:
    """What changes while a gate is used, kept out of the module's attributes.

    Tracers that forbid tensors to be assigned to modules see one constant object.
    """

    selection: Selection | None = None
    values: Tensor | None = None
    forced: tuple[Tensor, Tensor] | None = None
    summaries: list[Tensor] | None = None
    widths: list[HeadWidth] = field(default_factory=list)
    partners: list["NeuronGate"] = field(default_factory=list)

    def __getstate__(self) -> dict[str, Any]:
        """Give a copy everything but the last call's tensors, which may not be copied."""
        return {**self.__dict__, "selection": None, "values": None}


class NeuronGate(nn.Module):
    r"""Choose, for every input instance, the neurons of one group that are computed.

    .. math::
        s = p + f(z), \qquad g = 1 + \beta f(z), \qquad
        M_j = g_j \, [\, j \in \mathrm{Top}_r(s) \,]

    with z the pooled input, f the predictor, p the prior order and M the mask. A fresh gate has
    f = 0 and so keeps values of 1 in the prior's order.

    Args:
        name: of the neuron group.
        kind: of the neuron group.
        in_features: width of the owner's input (or of its pre-activation).
        neurons: neurons of the group.
        heads: heads they fall into; 0 for none.
        config: how it is built.
        layout: where the batch is in the owner's input.
        device: of the parameters.
        dtype: of the parameters.

    Attributes:
        prior: (neurons,) buffer; the order before the input has a say, in units of f.
        mean: (neurons,) value at which skipped neurons stand at the consumer's input, or None.
        beta: scalar; how strongly f moves the values (``mode="value"``).
        verified: the mode in which this group proved right when it was inserted.

    Source: DynaSegFormer, arXiv 2111.09499, Eq. 1 to 3; the mean of skipped neurons from
    Variance-Based Pruning, arXiv 2507.12988.
    """

    prior: Tensor

    def __init__(
        self,
        name: str,
        kind: str,
        in_features: int,
        neurons: int,
        heads: int,
        *,
        config: GateConfig,
        layout: InstanceLayout | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.name, self.kind, self.neurons, self.heads = name, kind, neurons, heads
        self.config = config
        self.layout = layout or InstanceLayout()
        self.call = CallRecorder()
        self.state = GateState()
        self.verified: Execution = "masked"
        self.requested: Literal["compact", "masked"] = "compact"
        self.final_ratio = config.prune_ratio
        self.prune_ratio = 0.0
        self.predictor: GatePredictor | None = None
        if config.order == "dynamic":
            hidden = config.hidden or max(LEAST_HIDDEN, round(config.hidden_ratio * in_features))
            self.predictor = GatePredictor(
                pooled_width(in_features, config.pool), neurons, hidden, device=device, dtype=dtype
            )
        self.register_buffer("prior", torch.zeros(neurons, device=device, dtype=dtype))
        if config.mode == "value" and self.predictor is not None:
            self.beta = nn.Parameter(torch.ones((), device=device, dtype=dtype))
        self.mean: nn.Parameter | None = None
        if config.compensation != "zero" and kind != "qk":
            start = torch.zeros(neurons, device=device, dtype=dtype)
            self.mean = nn.Parameter(start, requires_grad=config.compensation == "learned")
        self.set_prune_ratio(config.prune_ratio)

    def set_prune_ratio(self, ratio: float) -> None:
        """Set the share of neurons that is skipped from now on, in place."""
        kept_count(self.width, ratio, self.config.align)  # raises before anything changes
        self.prune_ratio = ratio
        self.sync()

    def sync(self) -> None:
        """Bring the host's head widths in line with what the gate keeps, in place."""
        for width in self.state.widths:
            narrow = self.kept if width.per_head else self.kept * self.segments
            active = self.running == "compact"
            setattr(width.module, width.attribute, narrow if active else width.dense)

    def train(self, mode: bool = True) -> "NeuronGate":
        """Switch between masked execution (training) and the requested one, in place."""
        super().train(mode)
        self.sync()
        return self

    def select(self, tokens: Tensor) -> None:
        """Choose the neurons for the input that a producer is about to read.

        Args:
            tokens: (B, T, C) input of the owner (or its pre-activation).
        """
        state = self.state
        scores, factor = self._score(tokens)
        index = top_r(scores, self.kept, self.segments)
        mask = value = None
        if self.running == "masked":
            mask = self._mask(scores, factor, index)
        elif factor is not None:
            value = factor.gather(1, index)
        state.selection = Selection(index, value, mask)
        if factor is None and mask is not None:
            factor = torch.sigmoid(scores - self._threshold(scores))
        state.values = factor

    def _score(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Give scores (B, neurons), and factors of the same shape where they are not all 1."""
        batch, state = tokens.shape[0], self.state
        if state.summaries is not None:
            state.summaries.append(pool_tokens(tokens, self.config.pool, self.real_tokens(tokens)))
        if state.forced is not None:
            scores, forced = state.forced
            return scores[:batch], forced[:batch] if self.config.mode == "value" else None
        if self.predictor is None:
            return self.prior.expand(batch, -1), None
        f: Tensor = self.predictor(pool_tokens(tokens, self.config.pool, self.real_tokens(tokens)))
        f = f.to(self.prior.dtype)  # autocast makes it coarser
        factor = 1.0 + self.beta * f if self.config.mode == "value" else None
        return self.prior + f, factor

    def real_tokens(self, tokens: Tensor) -> Tensor | None:
        """Give the padding mask of this call where it fits these tokens."""
        real = self.call.real
        return real if real is not None and real.shape == tokens.shape[:2] else None

    def _threshold(self, scores: Tensor) -> Tensor:
        """Give the least kept score of each neuron's segment, (B, neurons), without gradient."""
        parts = scores.detach().view(scores.shape[0], self.segments, self.width)
        least = parts.topk(self.kept, dim=-1, sorted=True).values[..., -1:]
        return least.expand_as(parts).reshape_as(scores)

    def _mask(self, scores: Tensor, factor: Tensor | None, index: Tensor) -> Tensor:
        hard = keep_mask(index, self.neurons, scores.dtype)
        if factor is not None:
            return hard * factor
        if not scores.requires_grad:
            return hard
        soft = torch.sigmoid(scores - self._threshold(scores))
        return hard + soft - soft.detach()

    @property
    def selection(self) -> Selection:
        """What was chosen for the input that runs.

        Raises:
            GateError: where the group's first producer has not run yet.
        """
        selection = self.state.selection
        if selection is None:
            raise GateError(
                f"Gate {self.name!r} has not selected neurons: its consumer ran before its first "
                "producer. Call the whole model."
            )
        return selection

    @property
    def running(self) -> Execution:
        """How the group runs now: masked while training or on request, else as verified."""
        masked = self.training or self.requested == "masked"
        return "masked" if masked else self.verified

    @property
    def values(self) -> Tensor | None:
        """(B, neurons) gate values G of the last call, which the L1 penalty reads."""
        return self.state.values

    @property
    def mask(self) -> Tensor:
        """(B, neurons) ones and zeros: the neurons kept for the last call."""
        return keep_mask(self.selection.index, self.neurons, self.prior.dtype)

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
        return max(gate.own_kept for gate in (self, *self.state.partners))

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
        """Multiply-adds of the gate for one input instance."""
        return self.predictor.macs if self.predictor is not None else 0

    def force(self, scores: Tensor | None, factor: Tensor | None = None) -> None:
        """Make the gate choose by these scores whatever the input, in place; None ends it.

        Args:
            scores: (B, neurons).
            factor: (B, neurons) values of the neurons, 1 where None.
        """
        if scores is None:
            self.state.forced = None
            return
        if scores.shape[-1] != self.neurons:
            raise UsageError(
                f"Gate {self.name!r} has {self.neurons} neurons, got {scores.shape[-1]} scores."
            )
        self.state.forced = (scores, torch.ones_like(scores) if factor is None else factor)

    def forget(self) -> None:
        """Drop what the last call left, in place."""
        self.state.selection = self.state.values = self.call.real = None

    def narrow_heads(
        self, widths: Sequence[HeadWidth], partners: Sequence["NeuronGate"] = ()
    ) -> None:
        """Let compact execution set these attributes of host modules, in place.

        Args:
            widths: the attributes; none gives the hosts their own values back.
            partners: the gates that narrow the same heads.
        """
        for width in self.state.widths:
            setattr(width.module, width.attribute, width.dense)
        self.state.widths = list(widths)
        self.state.partners = list(partners)
        self.sync()

    def extra_repr(self) -> str:
        """Show the group, what it keeps and how it runs."""
        return (
            f"{self.kind}, neurons={self.neurons}, heads={self.heads}, kept={self.kept} a segment, "
            f"{self.running}"
        )
