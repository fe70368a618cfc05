"""Swap torch's packed attention for one of separate linears and back: find, prove, then change."""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dynprune.example import Example
from dynprune.host.fused_paths import close_fused_paths, open_fused_paths
from dynprune.host.hooks import hand_over, hooked_within, why_irreplaceable, without_hooks
from dynprune.host.modes import at_inference
from dynprune.host.replacing import replace_everywhere
from dynprune.rewrite.attention.unpacked import UnpackedAttention
from dynprune.rewrite.made import count_made, note_undo, take_back
from dynprune.rewrite.proof import MODEL_TOLERANCE, TOLERANCE, outputs_of, relative_error
from dynprune.rewrite.record import Rewrite

__all__ = ["UNPACK_ATTENTION", "unpack_again", "unpack_attention"]

logger = logging.getLogger(__name__)

UNPACK_ATTENTION = "unpack-attention"

Call = tuple[tuple[Any, ...], dict[str, Any]]

_SIZES = ((6, 6), (5, 9))  # queries and keys of the random calls
_INSTANCES = 2


@dataclass
class _Seen:
    """The first call of one module in a run of the model."""

    call: Call | None = None


def unpack_attention(model: nn.Module, example: Example) -> list[Rewrite]:
    """Return every `nn.MultiheadAttention` a linear each for queries, keys and values, in place.

    Its packed projection is one parameter of three layers, which no gate can be put into. Each
    module is proven alone, on its own input and on random ones, and the model as a whole.
    """
    names = [name for name, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)]
    if not names:
        return [Rewrite(UNPACK_ATTENTION, "", {}, None, "the model has no nn.MultiheadAttention")]
    with at_inference(model):
        try:
            seen, before = _capture(model, example, names)
        except Exception as failure:  # whatever a foreign model raises, it is left as it was
            reason = f"the model fails on the example: {_line(failure)}"
            return [Rewrite(UNPACK_ATTENTION, name, {}, None, reason) for name in names]
    made = count_made(model)
    records = [_unpack(model, name, seen[name].call) for name in names]
    with at_inference(model):
        fault = _difference(model, example, before)
    if fault is None:
        return records
    logger.info("unpack-attention is taken back: %s", fault)
    take_back(model, made)
    return [record if record.reason else replace(record, reason=fault) for record in records]


def unpack_again(model: nn.Module, record: Rewrite) -> Callable[[], None]:
    """Check that a record fits the model, and give the function that unpacks in place.

    Raises:
        AttributeError, ValueError: it does not fit.
    """
    source = model.get_submodule(record.module)
    if (reason := _fault(model, source)) is not None:
        raise ValueError(reason)
    assert isinstance(source, nn.MultiheadAttention)
    return partial(_swap, model, source)


def _pack(unpacked: UnpackedAttention, model: nn.Module) -> None:
    """Give an unpacked attention its published form back, in place."""
    packed = unpacked.to_packed()
    replace_everywhere(model, {unpacked: packed})
    hand_over(unpacked, packed)
    open_fused_paths(unpacked.closed)


def _difference(model: nn.Module, example: Example, before: list[Tensor]) -> str | None:
    """Say how the model's outputs differ from these by more than rounding, or None."""
    try:
        after = outputs_of(example.run(model))
        for found, expected in zip(after, before, strict=True):
            error = relative_error(found, expected)
            if not error <= MODEL_TOLERANCE.get(expected.dtype, 0.0):
                return f"the model's output moved by {error:.1e}"
    except Exception as failure:  # such as code that reads the packed weight
        return f"the model fails with it: {_line(failure)}"
    return None


def _unpack(model: nn.Module, name: str, call: Call | None) -> Rewrite:
    """Unpack one module in place if its form allows it and the proof holds."""
    source = model.get_submodule(name)
    error: float | None = None
    reason = _fault(model, source)
    if reason is None and call is None:
        reason = "it does not run on the example"
    if reason is None:
        assert isinstance(source, nn.MultiheadAttention)
        assert call is not None
        try:
            error = _largest_error(source, call)
            if not error <= TOLERANCE:
                reason = f"the unpacked form differs by {error:.1e}, more than {TOLERANCE}"
        except Exception as failure:  # such as inputs that only a fused kernel takes
            reason = _line(failure)
        if reason is None:
            _swap(model, source)
    if reason is not None:
        logger.info("unpack-attention leaves %s as it is: %s", name, reason)
    return Rewrite(UNPACK_ATTENTION, name, {}, error, reason)


def _fault(model: nn.Module, source: nn.Module) -> str | None:
    """Say why a module cannot be unpacked, or None."""
    if source is model:
        return "it is the whole model, in which nothing can be put in its place"
    if type(source) is not nn.MultiheadAttention:
        return f"its class {type(source).__name__} is not torch's own nn.MultiheadAttention"
    if not source._qkv_same_embed_dim:
        return "its keys or values have another width than its queries (kdim, vdim)"
    if source.bias_k is not None or source.add_zero_attn:
        return "it adds keys and values of its own (add_bias_kv, add_zero_attn)"
    if (reason := why_irreplaceable(source)) is not None:
        return f"it {reason}"
    if (inner := hooked_within(source)) is not None:
        return f"hooks are registered on its {inner}, which it never calls"
    owners = sum(
        parameter is source.in_proj_weight or parameter is source.in_proj_bias
        for module in model.modules()
        if module is not source
        for parameter in module._parameters.values()
        if parameter is not None
    )
    return "its weight is shared with another module" if owners else None


def _swap(model: nn.Module, source: nn.MultiheadAttention) -> None:
    unpacked = UnpackedAttention(source)
    hand_over(source, unpacked)
    note_undo(model, partial(_pack, unpacked))
    replace_everywhere(model, {source: unpacked})
    unpacked.closed = close_fused_paths(model, [unpacked])
    unpacked.release()


def _capture(
    model: nn.Module, example: Example, names: list[str]
) -> tuple[dict[str, _Seen], list[Tensor]]:
    """Run the model; give the first call of each named module, and the model's outputs."""
    seen = {name: _Seen() for name in names}

    def remember(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if seen[name].call is None:
            seen[name].call = pytree.tree_map_only(Tensor, torch.clone, (args, kwargs))

    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            partial(remember, name), with_kwargs=True
        )
        for name in names
    ]
    try:
        return seen, outputs_of(example.run(model))
    finally:
        for handle in handles:
            handle.remove()


def _largest_error(source: nn.MultiheadAttention, call: Call) -> float:
    """Compare both forms in float32 on a captured call and on random ones.

    Returns:
        The largest relative error of outputs and weights.
    """
    source = without_hooks(copy.deepcopy(source)).float().eval()
    unpacked = UnpackedAttention(source)
    worst = 0.0
    with at_inference(source):
        for args, kwargs in [_raised(call), *_random_calls(source)]:
            expected, found = source(*args, **kwargs), unpacked(*args, **kwargs)
            pairs = zip(outputs_of(found), outputs_of(expected), strict=True)
            worst = max([worst, *(relative_error(a, b) for a, b in pairs)])
    return worst


def _raised(call: Call) -> Call:
    """Return the call with its floating-point tensors in float32."""
    raised: Call = pytree.tree_map_only(
        Tensor, lambda t: t.float() if t.is_floating_point() else t, call
    )
    return raised


def _random_calls(source: nn.MultiheadAttention) -> Iterator[Call]:
    """Make calls with other tokens, of one and of two sequences, with each mask, and with both."""
    generator = torch.Generator().manual_seed(0)
    device = source.in_proj_weight.device
    for tokens, span in _SIZES:
        q, k, v = (
            torch.randn(_INSTANCES, length, source.embed_dim, generator=generator).to(device)
            for length in (tokens, span, span)
        )
        if not source.batch_first:
            q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        late = torch.ones(tokens, span, dtype=torch.bool, device=device).triu(1)
        padding = torch.zeros(_INSTANCES, span, dtype=torch.bool, device=device)
        padding[1, -2:] = True
        cases: list[Mapping[str, Any]] = [
            {},
            {"key_padding_mask": padding, "average_attn_weights": False},
            {"attn_mask": late},
            {"attn_mask": late, "key_padding_mask": padding, "need_weights": False},
            {"need_weights": False},
        ]
        if tokens == span:
            cases.append({"attn_mask": late, "need_weights": False, "is_causal": True})
            yield (q[0], q[0], q[0]), {}
        for case in cases:
            yield (q, k, v), dict(case)


def _line(failure: Exception) -> str:
    return f"{type(failure).__name__}: {failure}".split("\n")[0]
