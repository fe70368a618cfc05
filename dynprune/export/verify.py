"""Check an exported file against the model that it was made of, before the file is kept."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dynprune.errors import OutputError
from dynprune.example import Example
from dynprune.export.program import compact
from dynprune.rewrite.proof import relative_error
from dynprune.tasks.logits import logits_of

__all__ = ["Check", "check_calls", "largest_difference"]

Check = Callable[[Sequence[Tensor]], Tensor]
"""Runs the exported file on a call's tensors."""

_PICTURES = ((128, 128), (97, 131), (160, 96))
_LENGTHS = (7, 16)


def check_calls(
    example: Example, shapes: Sequence[Sequence[int | str]], like: Sequence[Example] = ()
) -> list[Example]:
    """Make calls of different sizes and batches, as far as the file leaves them open.

    Args:
        example: the call that the file was made for.
        shapes: of the file's inputs, open sizes by name.
        like: real inputs; where they are given, all calls are made of them: a quantised file
            computes nothing of use on inputs beyond the ranges that it was calibrated for.
    """
    if like:
        return _of_real(shapes, like)
    calls = [example, example.batched(max(2, example.batch), seed=1)]
    is_open = {size for shape in shapes for size in shape if isinstance(size, str)}
    if {"height", "width"} <= is_open:
        calls += [_resized(example, sides, i) for i, sides in enumerate(_PICTURES)]
    elif "length" in is_open:
        calls += [_cut(example, length) for length in _LENGTHS]
    if "batch" not in is_open:
        calls = [call for call in calls if call.batch == example.batch]
    return calls


def largest_difference(
    model: nn.Module, run: Check, calls: Sequence[Example], *, tolerance: float, what: str
) -> float:
    """Compare a file with the model in compact execution.

    Args:
        model: that the file was made of.
        run: the file.
        calls: inputs.
        tolerance: relative difference at which the file is refused.
        what: the file's name in the message.

    Returns:
        The largest relative difference.

    Raises:
        OutputError: it is larger than the tolerance.
    """
    worst = 0.0
    for call in calls:
        with compact(model):
            expected = logits_of(call.run(model)).float()
        error = relative_error(run(call.tensors).float(), expected)
        worst = max(worst, error)
        if not error <= tolerance:
            shape = list(call.tensors[0].shape)
            raise OutputError(
                f"{what} differs from the model by {error:.1e} on an input of {shape}, more than"
                f" {tolerance:.0e}; nothing was written"
            )
    return worst


def _of_real(shapes: Sequence[Sequence[int | str]], like: Sequence[Example]) -> list[Example]:
    """Take the first and the last real input, and the first at other sizes where they are open."""
    is_open = {size for shape in shapes for size in shape if isinstance(size, str)}
    calls = [like[0], *like[-1:]] if len(like) > 1 else [like[0]]
    if {"height", "width"} <= is_open:
        calls += [
            _changed(
                like[0],
                lambda t: t.dim() == 4 and t.is_floating_point(),
                # mypy knows no type for a lambda with a default
                lambda t, sides=sides: F.interpolate(t, sides, mode="bilinear"),  # type: ignore[misc]
            )
            for sides in _PICTURES
        ]
    return calls


def _resized(example: Example, sides: tuple[int, int], seed: int) -> Example:
    generator = torch.Generator().manual_seed(seed)

    def noise(leaf: Tensor) -> Tensor:
        return torch.randn(*leaf.shape[:2], *sides, generator=generator).to(leaf)

    return _changed(example, lambda t: t.dim() == 4 and t.is_floating_point(), noise)


def _cut(example: Example, length: int) -> Example:
    return _changed(
        example, lambda t: t.dim() == 2 and not t.is_floating_point(), lambda t: t[:, :length]
    )


def _changed(
    example: Example, which: Callable[[Tensor], bool], change: Callable[[Tensor], Tensor]
) -> Example:
    args, kwargs = pytree.tree_map_only(
        Tensor, lambda t: change(t) if which(t) else t, (example.args, dict(example.kwargs))
    )
    return Example(args, kwargs)
