"""A decoder that adds where its source concatenates, and computes the same function."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from dynprune.rewrite.decoder.row_tiles import Resize, Stage, row_tiles_of_sum
from dynprune.rewrite.decoder.structure import ELEMENTWISE, Branch, DecoderStructure, Step

__all__ = [
    "FoldedDecoder",
    "PointwiseForm",
    "folded_weights",
    "pointwise_as",
    "pointwise_bias",
    "pointwise_weight",
]


PointwiseForm = Literal["linear", "convolution"]
_Asked = TypeVar("_Asked")

_FORM: ContextVar[PointwiseForm] = ContextVar("pointwise form", default="linear")
_SLICES: ContextVar[int] = ContextVar("slices of channels", default=1)
BLOCK = 16
"""Channels that engines lay out together: slices are multiples of it."""


@contextmanager
def pointwise_as(form: PointwiseForm, *, slices: int = 1) -> Iterator[None]:
    """Say how 1x1 maps of folded decoders run, or are exported, in the block.

    Args:
        form: see `pointwise`.
        slices: of channels that the stages are added in, one after the other, where the tail lets
            it: maps of fewer channels stay in the cache.
    """
    tokens = _FORM.set(form), _SLICES.set(slices)
    try:
        yield
    finally:
        _FORM.reset(tokens[0])
        _SLICES.reset(tokens[1])


def pointwise_weight(module: nn.Module) -> Tensor:
    """Return the ``(out, in)`` weight of a linear or a 1x1 convolution."""
    return cast(Tensor, module.weight).flatten(1)


def pointwise_bias(module: nn.Module) -> Tensor | None:
    """Return the ``(out,)`` bias of a linear or a 1x1 convolution, None where it has none."""
    return cast(Tensor | None, module.bias)


def _asked(variable: ContextVar[_Asked]) -> _Asked | None:
    """Return what an exporter asks for; a compiler, which cannot read it, asks for nothing."""
    return None if torch.compiler.is_dynamo_compiling() else variable.get()


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Map the channels of ``x`` (B, C, H, W) by ``weight`` (D, C).

    As ``linear`` it is a matrix product over channels-last memory, which the result has too; as
    ``convolution`` an engine that compiles the exported graph may lay memory out as it likes.
    """
    if _asked(_FORM) == "convolution":
        return F.conv2d(x, weight[:, :, None, None], bias)
    return F.linear(x.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)


@torch.no_grad()
def folded_weights(
    source: nn.Module, structure: DecoderStructure
) -> tuple[list[Tensor], Tensor | None]:
    """Multiply each projection into its columns of the fusing weight, in float64.

    A 1x1 map commutes with a resize whose weights sum to one, and a 1x1 map of a concatenation is
    a sum of 1x1 maps, so that ``fuse(cat_i(up_i(L_i x_i + l_i))) + f`` is
    ``sum_i up_i(F_i L_i x_i) + (f + sum_i F_i l_i)``.

    Args:
        source: the head that concatenates.
        structure: what it is made of.

    Returns:
        The weights ``F_i L_i``, one ``(D, C_i)`` per branch, and the bias ``(D,)``, or None where
        neither the fusing layer nor a projection has one.
    """
    fuse = source.get_submodule(structure.fuse)
    columns, shift = pointwise_weight(fuse), pointwise_bias(fuse)
    dtype, columns = columns.dtype, columns.double()
    weights: list[Tensor] = []
    parts: list[Tensor] = [] if shift is None else [shift.double()]
    for branch in structure.branches:
        projection = source.get_submodule(branch.projection)
        part = columns[:, slice(*branch.columns)]
        weights.append((part @ pointwise_weight(projection).double()).to(dtype))
        if (shift := pointwise_bias(projection)) is not None:
            parts.append(part @ shift.double())
    bias = torch.stack(parts).sum(0).to(dtype) if parts else None
    return weights, bias


_CHANNEL_BY_CHANNEL = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish),
    *(nn.Sigmoid, nn.Tanh, nn.Identity, nn.Dropout, nn.Dropout2d),
)


class FoldedDecoder(nn.Module):
    r"""The head ``tail(norm(fuse(cat_i(up_i(L_i x_i)))))`` with one linear per stage.

    .. math:: y = \mathrm{tail}(\mathrm{norm}(\sum_i \mathrm{up}_i(W_i x_i) + b)),
        \qquad W_i = F_i L_i

    Every linear runs at its own stage's resolution. This is the decoder of DynaSegFormer
    (arXiv 2111.09499, section 3: "concat becomes an addition"), here with no change of the
    function. BatchNorm stays live while it trains; in evaluation it is folded into the linears.

    Args:
        source: the head that concatenates. It stays inside: its norm and tail are shared and go
            on training, its projections and fusing layer are frozen and kept for the way back.
        structure: what the source is made of.

    Shape:
        As the source: called with the same arguments, among whose leaves are the stage maps
        ``(B, C_i, H_i, W_i)``; returns ``(B, K, H, W)``.

    Attributes:
        weights: the folded weights, one ``(D, C_i)`` per stage, in the order of the inputs.
        bias: ``(D,)`` or None.
    """

    bias: nn.Parameter | None

    def __init__(self, source: nn.Module, structure: DecoderStructure) -> None:
        super().__init__()
        self.structure = structure
        # Made once: torch 2.11 cannot trace code that makes a frozen record.
        self._resizes = tuple(_resize_of(branch, structure) for branch in structure.branches)
        self.source = source
        fuse = source.get_submodule(structure.fuse)
        trainable = cast(Tensor, fuse.weight).requires_grad
        weights, bias = folded_weights(source, structure)
        self.weights = nn.ParameterList(nn.Parameter(w, requires_grad=trainable) for w in weights)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=trainable)
        for module in self.frozen_modules():
            module.requires_grad_(False)
        self.train(source.training)

    def frozen_modules(self) -> list[nn.Module]:
        """Return the source's modules that never run here: its projections and fusing layer."""
        names = [*(branch.projection for branch in self.structure.branches), self.structure.fuse]
        return [self.source.get_submodule(name) for name in names]

    def stage_maps(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """Return the stage maps ``(B, C_i, H_i, W_i)`` among the arguments of a call."""
        leaves = pytree.tree_leaves((tuple(args), dict(kwargs)))
        return [leaves[branch.leaf] for branch in self.structure.branches]

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the head on the source's own arguments."""
        leaves = pytree.tree_leaves((args, kwargs))
        size = tuple(leaves[self.structure.size_leaf].shape[2:])
        norm = self.norm
        is_live = norm is not None and (norm.training or norm.running_mean is None)
        scale: Tensor | None = None
        bias: Tensor | None = self.bias
        if norm is not None and not is_live:
            scale, bias = _folded_norm(norm, bias)
        maps = [leaves[branch.leaf] for branch in self.structure.branches]
        weights = (
            list(self.weights) if scale is None else [w * scale[:, None] for w in self.weights]
        )
        if not is_live and self._runs_in_bands(maps[0]):
            return self._band_by_band(maps, weights, bias, size)
        if not is_live and (_asked(_SLICES) or 1) > 1 and self._ends_in_a_classifier():
            return self._slice_by_slice(maps, weights, bias, size)
        total = self._sum(maps, weights, bias, size)
        if norm is not None and is_live:
            total = norm(total)
        for step in self.structure.tail:
            total = self._run(step, total)
        return total

    def _sum(
        self,
        maps: Sequence[Tensor],
        weights: Sequence[Tensor],
        bias: Tensor | None,
        size: tuple[int, ...],
    ) -> Tensor:
        """Project every stage at its own resolution, resize and add.

        The map that is not resized comes last: engines let its product add to the others' sum, and
        apply what follows, on the way.
        """
        total: Tensor | None = None
        resizes = self._resizes
        small = [place for place, resize in enumerate(resizes) if resize is not None]
        whole = [place for place, resize in enumerate(resizes) if resize is None]
        # A bias may join before a resize, whose weights sum to one: the last small map takes it.
        takes_bias = small[-1] if small else 0
        for place in (*small, *whole):
            x, weight, resize = maps[place], weights[place], resizes[place]
            y = pointwise(x, weight, bias if place == takes_bias else None)  # (B, D, H_i, W_i)
            y = y if resize is None else resize(y, size)
            if total is None:
                total = y
            else:  # tracers take apart every write in place, at great length
                total = total + y if torch.compiler.is_compiling() else total.add_(y)
        assert total is not None
        return total

    def _runs_in_bands(self, x: Tensor) -> bool:
        """Whether the tail lets bands of rows be computed one after the other."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu":
            return False
        if x.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled("cpu"):
            return False
        # Antialiased resizing of one axis alone is not what torch computes along that axis.
        if any(b.antialias for b in self.structure.branches):
            return False
        return self._ends_in_a_classifier()

    def _ends_in_a_classifier(self) -> bool:
        """Whether the tail maps every channel by itself, then all of them by one 1x1 map."""
        if not self.structure.tail:
            return False
        *steps, last = self.structure.tail
        modules = [self.source.get_submodule(step.module) for step in steps if step.module]
        return (
            last.module is not None
            and _is_pointwise(self.source.get_submodule(last.module))
            and all(isinstance(module, _CHANNEL_BY_CHANNEL) for module in modules)
            and not any(map(_is_watched, [*modules, self.source.get_submodule(last.module)]))
        )

    def _slice_by_slice(
        self,
        maps: Sequence[Tensor],
        weights: Sequence[Tensor],
        bias: Tensor | None,
        size: tuple[int, ...],
    ) -> Tensor:
        """Compute some channels of the sum at a time, and add what they give to the logits."""
        *steps, last = self.structure.tail
        classifier = self.source.get_submodule(last.module or "")
        matrix, shift = pointwise_weight(classifier), pointwise_bias(classifier)
        width = _slice_width(matrix.shape[1], _asked(_SLICES) or 1)
        total: Tensor | None = None
        for first in range(0, matrix.shape[1], width):
            part = slice(first, first + width)
            hidden = self._sum(
                maps, [w[part] for w in weights], None if bias is None else bias[part], size
            )
            for step in steps:
                hidden = self._run(step, hidden)
            y = pointwise(hidden, matrix[:, part], shift if total is None else None)
            total = y if total is None else total + y
        assert total is not None
        return total

    def _band_by_band(
        self,
        maps: Sequence[Tensor],
        weights: Sequence[Tensor],
        bias: Tensor | None,
        size: tuple[int, ...],
    ) -> Tensor:
        """Compute a band of rows at a time, as far as the logits.

        Maps of all D channels at the largest resolution would go through main memory several
        times, in fresh pages each time; bands stay in the cache (docs/notes/performance.md).
        """
        *steps, last = self.structure.tail
        classifier = self.source.get_submodule(last.module or "")
        matrix, shift = pointwise_weight(classifier), pointwise_bias(classifier)
        height, width = size
        tokens = [x.permute(0, 2, 3, 1).contiguous() for x in maps]  # (B, H_i, W_i, C_i)
        logits = matrix.new_empty(len(maps[0]), height * width, len(matrix))
        for instance, out in enumerate(logits):
            stages = [
                Stage(x[instance], weight, resize)
                for x, weight, resize in zip(tokens, weights, self._resizes, strict=True)
            ]
            for top, band in row_tiles_of_sum(stages, bias, height, width):
                pixels = slice(top * width, (top + len(band)) * width)
                hidden = band[None].permute(0, 3, 1, 2)  # (1, D, rows, W)
                for step in steps:
                    hidden = self._run(step, hidden)
                flat = hidden.permute(0, 2, 3, 1).reshape(-1, matrix.shape[1])
                if shift is None:
                    torch.mm(flat, matrix.t(), out=out[pixels])
                else:
                    torch.addmm(shift, flat, matrix.t(), out=out[pixels])
        return logits.view(len(maps[0]), height, width, -1).permute(0, 3, 1, 2)

    def _run(self, step: Step, x: Tensor) -> Tensor:
        if step.function is not None:
            return ELEMENTWISE[step.function](x, *step.arguments)
        assert step.module is not None
        module = self.source.get_submodule(step.module)
        if torch.is_grad_enabled() or _is_watched(module):
            return module(x)
        if type(module) is nn.ReLU:
            return F.relu_(x)  # in place: nobody else holds the sum
        if _is_pointwise(module):
            return pointwise(x, pointwise_weight(module), pointwise_bias(module))
        return module(x)

    @property
    def norm(self) -> _BatchNorm | None:
        """The source's BatchNorm behind the fusing layer."""
        name = self.structure.norm
        return None if name is None else cast(_BatchNorm, self.source.get_submodule(name))

    def extra_repr(self) -> str:
        """Name the widths: each stage's, and the one they meet in."""
        stages = ", ".join(str(weight.shape[1]) for weight in self.weights)
        return f"stages=({stages}), width={self.weights[0].shape[0]}, bias={self.bias is not None}"


def _folded_norm(norm: _BatchNorm, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return BatchNorm's scale, and its shift with the bias in front of it folded in."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean if bias is None else bias - norm.running_mean
    shift = shift * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def _slice_width(channels: int, slices: int) -> int:
    """Return the width of as many equal slices of whole blocks as there can be, ``slices`` at most.

    Example:
        >>> _slice_width(768, 8), _slice_width(96, 8), _slice_width(100, 8)
        (96, 16, 100)
    """
    for count in range(slices, 0, -1):
        if channels % (count * BLOCK) == 0:
            return channels // count
    return channels


def _is_watched(module: nn.Module) -> bool:
    """Whether someone wants to see every call of the module."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _is_pointwise(module: nn.Module) -> bool:
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == (1, 1)
        and module.stride == (1, 1)
        and module.padding in ((0, 0), "valid", "same")
        and module.groups == 1
    )


def _resize_of(branch: Branch, structure: DecoderStructure) -> Resize | None:
    """Return a branch's resize, None where its map has the size of the sum."""
    if branch.mode is None or branch.leaf == structure.size_leaf:
        return None
    return Resize(branch.mode, branch.align_corners, branch.antialias)
