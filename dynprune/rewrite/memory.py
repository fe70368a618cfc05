"""Lay convolutions out channels-last, so that token models change memory formats nowhere."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dynprune.example import Example
from dynprune.host.modes import at_inference
from dynprune.host.strides import laid_out
from dynprune.rewrite.made import count_made, note_undo, take_back
from dynprune.rewrite.proof import TOLERANCE, outputs_of, relative_error
from dynprune.rewrite.record import Rewrite

__all__ = [
    "CHANNELS_LAST",
    "lay_out_again",
    "lay_out_channels_last",
    "marked_by_strides",
]

CHANNELS_LAST = "channels-last"


def lay_out_channels_last(model: nn.Module, example: Example) -> list[Rewrite]:
    """Store the weights of every 2-d convolution channels-last, in place, and prove it.

    A map made of tokens ``(B, H * W, C)`` is channels-last in memory already; a convolution whose
    weight is too neither copies it nor gives back a map that the next LayerNorm has to copy.
    Values stay, to rounding.
    """
    if next(_convolutions(model), None) is None:
        return [Rewrite(CHANNELS_LAST, "", {}, None, "the model has no 2-d convolution")]
    with at_inference(model):
        before = outputs_of(example.run(model))
    made = count_made(model)
    _lay_out(model)
    with at_inference(model):
        after = outputs_of(example.run(model))
    error = max(relative_error(a, b) for a, b in zip(after, before, strict=True))
    if not error <= 10 * TOLERANCE:  # rounding of every convolution, amplified by what follows
        take_back(model, made)
        reason = f"the model's output moved by {error:.1e}"
        return [Rewrite(CHANNELS_LAST, "", {}, error, reason)]
    return [Rewrite(CHANNELS_LAST, "", {}, error)]


def lay_out_again(model: nn.Module, _: Rewrite) -> Callable[[], None]:
    """Return the function that lays the model out channels-last, in place."""
    return lambda: _lay_out(model)


def marked_by_strides(x: Tensor) -> Tensor:
    """Return a batch of one the stride that tells channels-last memory from channels-first.

    Tokens seen as a map, ``tokens.transpose(1, 2).view(1, C, H, W)``, get the stride C along the
    batch, whose size of one leaves it free. Convolutions look at that stride, take the memory for
    channels-first, and copy it twice; with the stride H * W * C they do not.

    Shape:
        (B, C, H, W) in and out, the same memory.
    """
    if torch.compiler.is_compiling() or x.dim() != 4 or x.shape[0] != 1 or x.stride(1) != 1:
        return x  # a compiler lays memory out by itself
    return x[0].permute(1, 2, 0)[None].permute(0, 3, 1, 2)


def _lay_out(model: nn.Module) -> None:
    for module in _convolutions(model):
        weight = module.weight
        last = weight.detach().contiguous(memory_format=torch.channels_last)
        if last.stride() != weight.stride():
            note_undo(model, partial(_lay_back, weight, last.stride(), weight.stride()))
            weight.data = last
        if weight.shape[1] == 1:  # a filter of one channel cannot tell by its strides
            handle = module.register_forward_pre_hook(_mark_input)
            note_undo(model, partial(_unmark, module, handle.id))


def _lay_back(weight: Tensor, ours: Sequence[int], theirs: Sequence[int], _: nn.Module) -> None:
    """Give a weight its own strides, in place, unless somebody has laid it out anew since."""
    if weight.stride() == tuple(ours):
        weight.data = laid_out(weight.detach(), theirs)


def _unmark(module: nn.Module, key: int, _: nn.Module) -> None:
    module._forward_pre_hooks.pop(key, None)


def _mark_input(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return marked_by_strides(args[0]), *args[1:]


def _convolutions(model: nn.Module) -> Iterator[nn.Conv2d]:
    return (module for module in model.modules() if isinstance(module, nn.Conv2d))
