"""The dynamic gated linear layer (DGL): a linear that computes the selected neurons alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from dynprune.gate.instances import InstanceLayout, from_instances, to_instances
from dynprune.gate.layout import WeightLayout, lend_attributes, weight_layout
from dynprune.gate.neuron_gate import NeuronGate
from dynprune.gate.predictor import pool_tokens
from dynprune.gate.topr import kept_values

__all__ = ["DynamicLinear", "Port"]


@dataclass(frozen=True)
class Port:
    """How the neurons of one gate sit on one axis of a layer.

    Attributes:
        gate: of the neuron group.
        index: name of the buffer that holds the (neurons, m) positions, or None where the
            neurons are the whole axis in order.
        carries_value: whether the gate's values multiply here. They do at every consumer, and,
            for queries and keys, at one side of the product.
    """

    gate: NeuronGate
    index: str | None
    carries_value: bool


class DynamicLinear(nn.Module):
    r"""A linear, transposed linear or 1x1 convolution between gated neuron groups.

    .. math::
        Y = X (W_1 \circ M), \qquad Z = (\mu + M \circ (Y - \mu)) W_2^T + b_2

    Masked execution computes both products in full. Compact execution gathers the kept rows of
    W1 and columns of W2, for each instance its own, and gives the same Z.

    Args:
        weight: parameter of the layer that this one replaces; shared, never copied.
        bias: likewise, or None.
        layout: ``linear`` (out, in), ``transposed`` (in, out), ``pointwise`` (out, in, 1, ...).

    Shape:
        - Input: (..., in_features), or (B, in_features, ...) for ``pointwise``
        - Output: the same with out_features, or with the kept neurons in compact execution

    Attributes:
        gates: the gates that this layer owns: those whose group it is the first producer of.
        makes: ports of the groups whose neurons are this layer's output channels.
        reads: ports of the groups whose neurons are its input channels.

    Source: DynaSegFormer, arXiv 2111.09499, Eq. 1 to 3.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self, weight: nn.Parameter, bias: nn.Parameter | None, *, layout: WeightLayout = "linear"
    ) -> None:
        super().__init__()
        self.weight = weight
        self.register_parameter("bias", bias)
        self.layout = layout
        self.gates = nn.ModuleDict()
        self.makes: tuple[Port, ...] = ()
        self.reads: tuple[Port, ...] = ()
        self._standing: tuple[tuple[object, ...], Tensor] | None = None

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

    def add_port(
        self, side: Literal["makes", "reads"], gate: NeuronGate, index: Tensor | None, value: bool
    ) -> None:
        """Tie one axis of the layer to a gate, in place."""
        ports: tuple[Port, ...] = getattr(self, side)
        name = None
        if index is not None:
            name = f"{side}_{len(ports)}"
            self.register_buffer(name, index.to(self.weight.device), persistent=False)
        setattr(self, side, (*ports, Port(gate, name, value)))

    def forward(self, x: Tensor) -> Tensor:
        """Compute what the gates of this input ask for."""
        if self.layout == "pointwise":
            x = x.movedim(1, -1)
        for port in self.reads:
            if port.gate.running == "masked":
                x = self._mask_input(x, port)
        reads = [p for p in self.reads if p.gate.running != "masked"]
        whole = self._widened(x, reads) if reads and self.gates else x
        for gate in self.gates.values():
            self._select(gate, whole)
        y = self._product(x, reads)
        return y.movedim(-1, 1) if self.layout == "pointwise" else y

    def _select(self, gate: nn.Module, x: Tensor) -> None:
        assert isinstance(gate, NeuronGate)
        axis = gate.layout.axis
        count = gate.call.instances if gate.layout.folded else x.shape[axis]
        tokens = to_instances(x, count, gate.layout)
        if gate.config.source == "preactivation":
            mean = pool_tokens(tokens, "mean", gate.real_tokens(tokens))
            tokens = F.linear(mean, self.matrix, self.bias)[:, None]
        gate.select(tokens)

    def _product(self, x: Tensor, reads: Sequence[Port]) -> Tensor:
        makes = [p for p in self.makes if p.gate.running != "masked"]
        if not reads and not makes:
            y = F.linear(x, self.matrix, self.bias)
        else:
            y = self._gathered(x, reads, makes)
        for port in self.makes:
            if port.gate.running == "masked" and port.gate.kind == "qk":
                y = self._mask_output(y, port)
        return y

    # Masked execution

    def _spread(self, values: Tensor, port: Port, size: int, fill: float) -> Tensor:
        """Lay (B, neurons) out along an axis of ``size`` channels."""
        if port.index is None:
            return values
        index: Tensor = getattr(self, port.index)
        full = values.new_full((values.shape[0], size), fill)
        flat = index.reshape(1, -1).expand(values.shape[0], -1)
        return full.scatter(1, flat, values.repeat_interleave(index.shape[1], 1))

    def _mask_input(self, x: Tensor, port: Port) -> Tensor:
        gate, size = port.gate, x.shape[-1]
        mask = gate.selection.mask
        assert mask is not None
        mask = self._spread(mask, port, size, 1.0)[:, None]  # (B, 1, C)
        tokens = to_instances(x, mask.shape[0], gate.layout)
        if gate.mean is None:
            masked = tokens * mask
        else:
            mean = self._spread(gate.mean[None], port, size, 0.0)
            masked = tokens * mask + mean * (1.0 - mask)
        return from_instances(masked, x, gate.layout)

    def _mask_output(self, y: Tensor, port: Port) -> Tensor:
        gate, size = port.gate, y.shape[-1]
        mask = gate.selection.mask
        assert mask is not None
        if port.index is None:
            factor = mask if port.carries_value else gate.mask
        else:
            factor = self._spread(gate.mask, port, size, 1.0)
            if port.carries_value:
                index: Tensor = getattr(self, port.index)
                factor = factor.scatter(1, index[:, -1].expand(mask.shape[0], -1), mask)
        tokens = to_instances(y, mask.shape[0], gate.layout)
        return from_instances(tokens * factor[:, None], y, gate.layout)

    # Compact and scatter execution

    def _positions(
        self, ports: Sequence[Port], size: int
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Give kept positions (B, P) ascending, and their factors and means where there are any."""
        if len(ports) == 1 and ports[0].index is None:
            gate, selection = ports[0].gate, ports[0].gate.selection
            value = selection.value if ports[0].carries_value else None
            mean = None if gate.mean is None else kept_values(gate.mean, selection.index)
            return selection.index, value, mean
        batch = ports[0].gate.selection.index.shape[0]
        device = self.weight.device
        keep = torch.ones(batch, size, dtype=torch.bool, device=device)
        value = torch.ones(batch, size, dtype=self.weight.dtype, device=device)
        mean = torch.zeros(batch, size, dtype=self.weight.dtype, device=device)
        kept = size
        for port in ports:
            gate, selection = port.gate, port.gate.selection
            index = (
                torch.arange(size, device=device)[:, None]
                if port.index is None
                else getattr(self, port.index)
            )
            keep[:, index.flatten()] = False
            rows = index[selection.index]  # (B, K, m)
            keep.scatter_(1, rows.flatten(1), True)
            kept -= index.numel() - rows[0].numel()
            if selection.value is not None and port.carries_value:
                carrying = rows[..., -1:] if gate.kind == "qk" else rows
                factor = selection.value.repeat_interleave(carrying.shape[-1], 1)
                value = value.scatter(1, carrying.flatten(1), factor)
            if gate.mean is not None:
                means = gate.mean[selection.index].repeat_interleave(index.shape[1], 1)
                mean = mean.scatter(1, rows.flatten(1), means)
        positions = keep.to(torch.uint8).topk(kept, dim=1).indices.sort(dim=1).values
        return positions, value.gather(1, positions), mean.gather(1, positions)

    def _narrowed(self, x: Tensor, ports: Sequence[Port], columns: Tensor) -> Tensor:
        """Give the kept columns (B, T, P) of an input that may still be full width."""
        tokens = to_instances(x, columns.shape[0], ports[0].gate.layout)
        if all(port.gate.running == "compact" for port in ports):
            return tokens
        place, _ = self._places(ports, columns, self.in_features)
        return tokens.gather(2, place[:, None].expand(-1, tokens.shape[1], -1))

    def _places(self, ports: Sequence[Port], kept: Tensor, size: int) -> tuple[Tensor, int]:
        """Give where kept positions lie on an axis that only its compact ports have narrowed."""
        compact = [port for port in ports if port.gate.running == "compact"]
        if not compact:
            return kept, size
        there, _, _ = self._positions(compact, size)
        return torch.searchsorted(there.contiguous(), kept.contiguous()), there.shape[1]

    def _widened(self, x: Tensor, ports: Sequence[Port]) -> Tensor:
        """Give the full-width masked input that this layer's own gates choose by."""
        columns, value, mean = self._positions(ports, self.in_features)
        tokens = self._narrowed(x, ports, columns)
        if mean is not None:
            tokens = tokens - mean[:, None]
        if value is not None:
            tokens = tokens * value[:, None]
        full = tokens.new_zeros(*tokens.shape[:-1], self.in_features)
        full = full.scatter(2, columns[:, None].expand(-1, tokens.shape[1], -1), tokens)
        for port in ports:
            if port.gate.mean is not None:
                stand = self._spread(port.gate.mean[None], port, self.in_features, 0.0)
                full = full + stand[:, None]
        return from_instances(full, x, ports[0].gate.layout)

    def _gathered(self, x: Tensor, reads: Sequence[Port], makes: Sequence[Port]) -> Tensor:
        gate = (*makes, *reads)[0].gate
        layout: InstanceLayout = gate.layout
        batch = gate.selection.index.shape[0]
        out_features, in_features = self.matrix.shape
        rows = columns = row_value = column_value = column_mean = None
        if makes:
            rows, row_value, _ = self._positions(makes, out_features)
        if reads:
            columns, column_value, column_mean = self._positions(reads, in_features)
        if columns is None:
            tokens = to_instances(x, batch, layout)
        else:
            tokens = self._narrowed(x, reads, columns)
        weight, offset = self._gather_weights(rows, columns)
        outs, ins = (2, 1) if rows is None else (1, 2)  # axes of the gathered weights
        if column_value is not None:
            count = tokens.shape[1]
            if isinstance(count, int) and count < weight.shape[outs]:  # the cheaper factor
                tokens = tokens * column_value[:, None]
                column_mean = None if column_mean is None else column_mean * column_value
            else:
                weight = weight * column_value.unsqueeze(outs)
        if column_mean is not None:
            full = self._compensated_bias()
            skip = (column_mean[:, None] @ weight.transpose(ins, 1)).squeeze(1)  # (B, out)
            offset = (full if rows is None else kept_values(full, rows)) - skip
        if row_value is not None:
            weight = weight * row_value.unsqueeze(ins)
            offset = None if offset is None else offset * row_value
        y = self._multiply(tokens, weight, offset, transposed=rows is not None)
        if rows is not None and any(p.gate.running == "scatter" for p in makes):
            place, width = self._places(makes, rows, out_features)
            full = y.new_zeros(*y.shape[:-1], width)
            y = full.scatter(2, place[:, None].expand(-1, y.shape[1], -1), y)
        return from_instances(y, x, layout)

    def _gather_weights(
        self, rows: Tensor | None, columns: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Give the weights of the kept rows and columns, and the bias (B, out).

        They lie as they were gathered, so that nothing is transposed: (B, out, in) where rows were
        chosen, (B, in, out) where columns alone were.
        """
        matrix, bias = self.matrix, self.bias
        if rows is None:
            assert columns is not None
            batch, kept = columns.shape
            weight = matrix.t().index_select(0, columns.flatten()).view(batch, kept, -1)
            return weight, None if bias is None else bias.expand(batch, -1)
        batch, kept = rows.shape
        weight = matrix.index_select(0, rows.flatten()).view(batch, kept, -1)
        if columns is not None:
            weight = weight.gather(2, columns[:, None].expand(-1, kept, -1))
        return weight, None if bias is None else kept_values(bias, rows)

    @staticmethod
    def _multiply(
        tokens: Tensor, weight: Tensor, offset: Tensor | None, *, transposed: bool
    ) -> Tensor:
        """Give tokens (B, T, I) @ weight (B, I, O) + offset (B, O) for each instance.

        The weight is (B, O, I) where ``transposed``.
        """
        if tokens.shape[0] == 1:  # one plain product: engines add its bias on the way
            matrix, flat = weight.squeeze(0), None if offset is None else offset.squeeze(0)
            matrix = matrix if transposed else matrix.t()
            return F.linear(tokens.squeeze(0), matrix, flat).unsqueeze(0)
        weight = weight.transpose(1, 2) if transposed else weight
        if offset is None:
            return torch.bmm(tokens, weight)
        return torch.baddbmm(offset[:, None], tokens, weight)

    def _compensated_bias(self) -> Tensor:
        """Give b2 + W2 mu, (out,): the output where every neuron stands at its mean.

        It is kept between calls without gradients, for as long as no parameter in it changes.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
            return self._fold_means()
        parts = [self.weight, self.bias, *(port.gate.mean for port in self.reads)]
        known = [part for part in parts if part is not None]
        if torch._C._get_tracing_state() or any(part.is_inference() for part in known):
            return self._fold_means()
        state = (
            tuple((part.data_ptr(), part._version, part.dtype) for part in known),
            tuple(port.gate.running for port in self.reads),
        )
        if self._standing is None or self._standing[0] != state:
            with torch.inference_mode(False), torch.no_grad():
                self._standing = (state, self._fold_means())
        return self._standing[1]

    def train(self, mode: bool = True) -> "DynamicLinear":
        """Switch between training and evaluation, in place; forget what evaluation kept."""
        self._standing = None
        return super().train(mode)

    def _fold_means(self) -> Tensor:
        size = self.matrix.shape[1]
        mean = torch.zeros(1, size, dtype=self.weight.dtype, device=self.weight.device)
        for port in self.reads:
            if port.gate.mean is not None and port.gate.running != "masked":
                mean = mean + self._spread(port.gate.mean[None], port, size, 0.0)
        return F.linear(mean, self.matrix, self.bias)[0]

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
        """Show sizes and ports."""
        makes = ", ".join(p.gate.name for p in self.makes)
        reads = ", ".join(p.gate.name for p in self.reads)
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, makes=[{makes}], reads=[{reads}]"
        )
