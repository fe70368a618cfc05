"""Carriers: layers that pass neurons on channel by channel and must narrow with them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from dynprune.errors import GateError
from dynprune.gate.layout import lend_attributes
from dynprune.gate.neuron_gate import NeuronGate
from dynprune.rewrite.memory import marked_by_strides

__all__ = ["DynamicBatchNorm", "DynamicDepthwiseConv", "carry"]

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class DynamicDepthwiseConv(nn.Module):
    """A depthwise convolution that runs on the kept channels of each instance.

    Its rows may be parts of instances, side by side (frames, crops, windows).

    Args:
        source: the convolution that this one replaces; its parameters are shared.
        gate: of the neurons that are its channels, in order.

    Shape:
        - Input: (B * r, channels, ...), or (B * r, kept, ...) in compact execution
        - Output: the same channels
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, source: _ConvNd, gate: NeuronGate) -> None:
        super().__init__()
        if source.groups != source.in_channels or source.out_channels != source.in_channels:
            raise GateError("Only a convolution with one filter a channel can be narrowed.")
        if source.padding_mode != "zeros":
            raise GateError(f"padding_mode={source.padding_mode!r} cannot be narrowed.")
        for name in ("weight", "bias"):
            self.register_parameter(name, source._parameters[name])
        self.stride, self.padding, self.dilation = source.stride, source.padding, source.dilation
        self._neurons = gate.members
        lend_attributes(source, self)
        self.train(source.training)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, each instance with the filters of the neurons it kept."""
        selection = self._neurons.scope.current().selection(self._neurons)
        if selection.execution != "compact":
            return self._convolve(x, self.weight, self.bias)
        index = selection.index
        batch, kept = index.shape
        rows = rows_of_each(x, batch)
        bias = self.bias
        if torch.compiler.is_compiling():
            every = spread_over_rows(index, rows).flatten()
            weight = self.weight.index_select(0, every)
            flat_bias = None if bias is None else bias.index_select(0, every)
            flat = x.reshape(1, x.shape[0] * kept, *x.shape[2:])
            y = self._convolve(flat, weight, flat_bias)
            return y.view(x.shape[0], kept, *y.shape[2:])
        parts = [
            self._convolve(
                x[b * rows : (b + 1) * rows],
                self.weight.index_select(0, index[b]),
                None if bias is None else bias.index_select(0, index[b]),
            )
            for b in range(batch)
        ]
        if not parts:  # no instance: any filters give the sizes of the result
            return self._convolve(x, self.weight[:kept], None)
        return parts[0] if batch == 1 else torch.cat(parts)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        convolution = CONVOLUTIONS[weight.dim() - 2]
        return convolution(
            marked_by_strides(x),
            weight,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            weight.shape[0],
        )


class DynamicBatchNorm(nn.Module):
    """A batch norm that runs on the kept channels of each instance.

    Its rows may be parts of instances, side by side (flattened tokens).

    Args:
        source: the batch norm that this one replaces; it stays inside and keeps its statistics.
        gate: of the neurons that are its channels, in order.

    Shape:
        - Input: (B * r, channels, ...), or (B * r, kept, ...) in compact execution
        - Output: the same channels
    """

    def __init__(self, source: _BatchNorm, gate: NeuronGate) -> None:
        super().__init__()
        if source.running_mean is None:
            raise GateError("A batch norm without running statistics cannot be narrowed.")
        self.source = source
        self._neurons = gate.members
        lend_attributes(source, self)
        self.train(source.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, each instance with the statistics of the neurons it kept."""
        source = self.source
        selection = self._neurons.scope.current().selection(self._neurons)
        if selection.execution != "compact":
            return source(x)
        mean, var = source.running_mean, source.running_var
        assert mean is not None
        assert var is not None
        scale = (var + source.eps).rsqrt()
        if source.affine:
            scale = scale * source.weight
        shift = -mean * scale
        if source.affine:
            shift = shift + source.bias
        index = spread_over_rows(selection.index, rows_of_each(x, selection.batch))
        shape = (*index.shape, *[1] * (x.dim() - 2))
        return x * scale[index].view(shape) + shift[index].view(shape)


def rows_of_each(x: Tensor, instances: int) -> int:
    """Return how many rows of a carrier's input each instance has.

    Raises:
        GateError: the rows do not divide into the instances.
    """
    rows = x.shape[0]
    if isinstance(instances, int) and instances == 0:
        return 1
    if rows % instances:
        raise GateError(
            f"A gated layer got {rows} rows, which do not divide into the {instances} inputs its "
            "gate selected neurons for. Call the whole model, not a part of it."
        )
    return rows // instances


def spread_over_rows(index: Tensor, rows: int) -> Tensor:
    """Repeat each instance's choice (B, K) for all of its rows, (B * rows, K)."""
    return index if isinstance(rows, int) and rows == 1 else index.repeat_interleave(rows, 0)


def carry(module: nn.Module, gate: NeuronGate) -> nn.Module:
    """Make the layer that narrows with ``gate`` in place of a carrier.

    Raises:
        GateError: where no such layer is known.
    """
    if isinstance(module, _ConvNd) and not module.transposed:
        return DynamicDepthwiseConv(module, gate)
    if isinstance(module, _BatchNorm):
        return DynamicBatchNorm(module, gate)
    raise GateError(f"A {type(module).__name__} between the linears cannot be narrowed.")
