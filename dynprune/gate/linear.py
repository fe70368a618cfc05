"""The dynamic gated linear layer (DGL): a linear that computes the selected neurons alone."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynprune.gate.binding import Binding, Bound, gate_mean
from dynprune.gate.call import Call
from dynprune.gate.compact import (
    Kept,
    gathered_product,
    kept_channels,
    narrowed,
    scattered,
    widened,
)
from dynprune.gate.instances import from_instances, to_instances
from dynprune.gate.layout import WeightLayout, lend_attributes, weight_layout
from dynprune.gate.masked import mask_inputs, mask_outputs
from dynprune.gate.neuron_gate import NeuronGate
from dynprune.gate.predictor import pool_tokens

__all__ = ["DynamicLinear"]


class DynamicLinear(nn.Module):
    r"""A linear, transposed linear or 1x1 convolution between gated neuron groups.

    .. math::
        Y = X (W_1 \circ M), \qquad Z = (M \circ (Y - \mu)) W_2^T + b_2 + o

    with the offset :math:`o = W_2 \mu` taken when the means are set. Masked execution computes both
    products in full. Compact execution gathers the kept rows of W1 and columns of W2, for each
    instance its own, and gives the same Z. Nothing is kept between calls.

    Args:
        weight: parameter of the layer that this one replaces; shared, never copied.
        bias: likewise, or None.
        layout: ``linear`` (out, in), ``transposed`` (in, out), ``pointwise`` (out, in, 1, ...).

    Shape:
        - Input: (..., in_features), or (B, in_features, ...) for ``pointwise``
        - Output: the same with out_features, or with the kept neurons in compact execution

    Attributes:
        gates: the gates that this layer owns: those whose group it is the first producer of.
        makes: bindings of the groups whose neurons are this layer's output channels.
        reads: bindings of the groups whose neurons are its input channels.
        offset: (out_features,) buffer o; None where no skipped neuron has a mean.

    Source: DynaSegFormer, arXiv 2111.09499, Eq. 1 to 3.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    offset: Tensor | None

    def __init__(
        self, weight: nn.Parameter, bias: nn.Parameter | None, *, layout: WeightLayout = "linear"
    ) -> None:
        super().__init__()
        self.weight = weight
        self.register_parameter("bias", bias)
        self.register_buffer("offset", None)
        self.layout = layout
        self.gates = nn.ModuleDict()
        self.makes: tuple[Binding, ...] = ()
        self.reads: tuple[Binding, ...] = ()

    @classmethod
    def from_module(cls, module: nn.Module) -> "DynamicLinear":
        """Take over the parameters of a linear-like module.

        Raises:
            GateError: where the module is none.
        """
        if isinstance(module, cls):
            return module
        layout = weight_layout(module)
        weight, bias = module.get_parameter("weight"), getattr(module, "bias", None)
        layer = cls(weight, bias, layout=layout)
        lend_attributes(module, layer)
        layer.train(module.training)
        return layer

    def bind(
        self,
        side: Literal["makes", "reads"],
        gate: NeuronGate,
        index: Tensor | None,
        *,
        carries_value: bool,
        beside: bool = False,
        hides: bool = True,
    ) -> None:
        """Tie one axis of the layer to a gate, in place.

        Args:
            side: ``makes`` for its outputs, ``reads`` for its inputs.
            gate: of the neurons.
            index: (neurons, m) positions; None where they are the whole axis.
            carries_value: whether the gate's values multiply here.
            beside: whether the layer is a branch, whose outputs are added to another one's.
            hides: whether queries and keys that are skipped are zero here, and not later.
        """
        bindings: tuple[Binding, ...] = getattr(self, side)
        name = None
        if index is not None:
            name = f"{side}_{len(bindings)}"
            self.register_buffer(name, index.to(self.weight.device), persistent=False)
        setattr(self, side, (*bindings, Binding(gate.members, name, carries_value, beside, hides)))
        if side == "reads" and gate.mean is not None and self.offset is None:
            self.offset = torch.zeros_like(self.matrix[:, 0], memory_format=torch.contiguous_format)

    def forward(self, x: Tensor) -> Tensor:
        """Compute what the gates of this input ask for."""
        if self.layout == "pointwise":
            x = x.movedim(1, -1)
        y = self._gated(x) if self.makes or self.reads else F.linear(x, self.matrix, self.bias)
        return y.movedim(-1, 1) if self.layout == "pointwise" else y

    def _gated(self, x: Tensor) -> Tensor:
        scope = (*self.makes, *self.reads)[0].neurons.scope
        call = scope.current(trained=self.training or torch.is_grad_enabled())
        read = [self._bound(binding, call) for binding in self.reads]
        masked = [bound for bound in read if bound.selection.execution == "masked"]
        narrow = [bound for bound in read if bound.selection.execution != "masked"]
        for bound in masked:  # instances and tokens may choose side by side
            layout = self.reads[0].neurons.layout
            tokens = to_instances(x, bound.selection.batch, layout)
            x = from_instances(mask_inputs(tokens, [bound]), x, layout)
        columns = None
        if narrow:
            columns = kept_channels(narrow, self.in_features, self.weight.dtype)
        known = None
        if self.gates:
            whole = self._whole(x, read, narrow, columns)
            if any(gate.reads_projection for gate in self.gates.values()):
                known = F.linear(whole, self.matrix, self._constant())
            for gate in self.gates.values():
                self._choose(gate, whole, call, known)
        made = [self._bound(binding, call) for binding in self.makes]
        if known is not None:
            return self._kept_of(known, made)
        return self._product(x, narrow, columns, made)

    def _kept_of(self, y: Tensor, made: Sequence[Bound]) -> Tensor:
        """Return the kept channels of an output that was computed whole."""
        (bound,) = made  # one group alone: see `dynprune.gate.gating`
        if bound.selection.execution != "compact":
            return y
        layout = self.makes[0].neurons.layout
        tokens, index = to_instances(y, bound.selection.batch, layout), bound.selection.index
        kept = tokens.gather(2, index[:, None].expand(-1, tokens.shape[1], -1))
        return from_instances(kept, y, layout)

    def _bound(self, binding: Binding, call: Call) -> Bound:
        neurons = binding.neurons
        index: Tensor | None = None if binding.index is None else getattr(self, binding.index)
        return Bound(call.selection(neurons), index, binding.carries_value, neurons.kind == "qk")

    def _whole(
        self, x: Tensor, read: Sequence[Bound], narrow: Sequence[Bound], columns: Kept | None
    ) -> Tensor:
        """Return the input at full width, with means of skipped channels, that own gates read."""
        if columns is not None:
            layout = self.reads[0].neurons.layout
            tokens = to_instances(x, narrow[0].selection.batch, layout)
            tokens = narrowed(tokens, narrow, columns, self.in_features)
            x = from_instances(widened(tokens, columns, self.in_features), x, layout)
        mean = gate_mean(read, self.in_features)
        return x if mean is None else x + mean

    def _choose(self, gate: nn.Module, x: Tensor, call: Call, known: Tensor | None) -> None:
        assert isinstance(gate, NeuronGate)
        layout = gate.layout
        count = call.instances if layout.folded else x.shape[layout.axis]
        tokens = to_instances(x, count, layout)
        if gate.config.source == "preactivation":
            mean = pool_tokens(tokens, "mean", call.real(tokens, x))
            tokens = F.linear(mean, self.matrix, self._constant())[:, None]
        if known is not None:
            known = to_instances(known, count, layout)
        gate.choose(tokens, call, x, known)

    def _product(
        self, x: Tensor, narrow: Sequence[Bound], columns: Kept | None, made: Sequence[Bound]
    ) -> Tensor:
        chosen = [bound for bound in made if bound.selection.execution != "masked"]
        if chosen or narrow:
            y = self._gathered(x, narrow, columns, chosen)
        else:
            y = F.linear(x, self.matrix, self._constant())
        hidden = [
            bound
            for bound, binding in zip(made, self.makes, strict=True)
            if bound.selection.execution == "masked"
            and binding.neurons.kind == "qk"
            and binding.hides
        ]
        if not hidden:
            return y
        layout = self.makes[0].neurons.layout
        tokens = to_instances(y, hidden[0].selection.batch, layout)
        return from_instances(mask_outputs(tokens, hidden), y, layout)

    def _gathered(
        self, x: Tensor, narrow: Sequence[Bound], columns: Kept | None, chosen: Sequence[Bound]
    ) -> Tensor:
        layout = (*self.makes, *self.reads)[0].neurons.layout
        tokens = to_instances(x, (*chosen, *narrow)[0].selection.batch, layout)
        if columns is not None:
            tokens = narrowed(tokens, narrow, columns, self.in_features)
        rows = None
        if chosen:
            rows = kept_channels(chosen, self.out_features, self.weight.dtype)
        constant = self._constant()
        y = gathered_product(tokens, self.matrix, constant, rows=rows, columns=columns)
        if rows is not None:
            y = scattered(y, chosen, rows, self.out_features, self.weight.dtype)
        return from_instances(y, x, layout)

    def _constant(self) -> Tensor | None:
        """Return b2 + o, (out_features,), or None where there is neither."""
        if self.offset is None:
            return self.bias
        return self.offset if self.bias is None else self.bias + self.offset

    @property
    def matrix(self) -> Tensor:
        """The weight as (out_features, in_features), a view."""
        if self.layout == "pointwise":
            return self.weight.flatten(1)
        return self.weight.t() if self.layout == "transposed" else self.weight

    @property
    def in_features(self) -> int:
        """Input channels at full width."""
        return self.matrix.shape[1]

    @property
    def out_features(self) -> int:
        """Output channels at full width."""
        return self.matrix.shape[0]

    def extra_repr(self) -> str:
        """Show sizes and bindings."""
        makes = ", ".join(binding.neurons.name for binding in self.makes)
        reads = ", ".join(binding.neurons.name for binding in self.reads)
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, makes=[{makes}], reads=[{reads}]"
        )
