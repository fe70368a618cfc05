"""Count the multiply-adds of the operations that really run."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dynprune.example import Example
from dynprune.host.fused_paths import without_fused_paths
from dynprune.host.trial import trial
from dynprune.measure.operators import has_no_products, plain_name

__all__ = ["FORMULAS", "ExecutedMacs", "Formula", "count_executed", "executed"]

Formula = Callable[[tuple[Any, ...], Any], int]
"""From the positional arguments and the result of an operator to its multiply-adds."""


@dataclass(frozen=True)
class ExecutedMacs:
    """Multiply-adds of one call.

    Attributes:
        total: of the whole call, all batch rows.
        by_module: innermost module -> its own multiply-adds ("" for the model itself).
        by_op: ATen operator -> multiply-adds.
        uncounted: operators that ran without a formula, and of which it is not known that they
            have no products -> how often; what they cost is missing in ``total``.
    """

    total: int
    by_module: Mapping[str, int]
    by_op: Mapping[str, int]
    uncounted: Mapping[str, int]


def executed(
    model: nn.Module, example: Example, *, handles: Mapping[str, Formula] | None = None
) -> int:
    """Count the multiply-adds that one call of a model executes.

    Products alone count: linears, convolutions, matrix products and attention. What is skipped in
    compact execution does not run, and so is not counted; a gate's predictor runs, and is.

    Args:
        model: run as it is, in its own mode.
        example: the call.
        handles: operator -> formula, besides and before `FORMULAS`; see `count_executed`.
    """
    return count_executed(model, example, handles=handles).total


def count_executed(
    model: nn.Module, example: Example, *, handles: Mapping[str, Formula] | None = None
) -> ExecutedMacs:
    """Count as `executed` does, and say which module and operator ran the products.

    Args:
        model: run as it is, in its own mode.
        example: the call.
        handles: operator -> formula, besides and before `FORMULAS`. An operator of ATen goes by
            its plain name (``mm``), another one by ``namespace::name``.
    """
    formulas = {**FORMULAS, **(handles or {})}
    by_module: Counter[str] = Counter()
    by_op: Counter[str] = Counter()
    uncounted: Counter[str] = Counter()
    with (
        torch.no_grad(),
        trial(model),
        without_fused_paths(),
        _current_module(model) as stack,
        _Count(stack, formulas, by_module, by_op, uncounted),
    ):
        example.run(model)
    return ExecutedMacs(sum(by_op.values()), dict(by_module), dict(by_op), dict(uncounted))


class _Count(TorchDispatchMode):
    """Adds up the products of every operator that reaches a kernel."""

    def __init__(
        self,
        stack: list[str],
        formulas: Mapping[str, Formula],
        by_module: Counter[str],
        by_op: Counter[str],
        uncounted: Counter[str],
    ) -> None:
        super().__init__()
        self.stack, self.formulas = stack, formulas
        self.by_module, self.by_op, self.uncounted = by_module, by_op, uncounted

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = plain_name(func)
        formula = self.formulas.get(name)
        if formula is None:
            with self:  # a composite operator shows its parts here, under inference mode too
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
            if not has_no_products(func):
                self.uncounted[name] += 1
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        macs = formula(args, out)
        self.by_op[name] += macs
        self.by_module[self.stack[-1]] += macs
        return out


@contextmanager
def _current_module(model: nn.Module) -> Iterator[list[str]]:
    """Keep the names of the modules that are running, the innermost last."""
    stack = [""]

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: stack.append(name)

    def leave(*_: Any) -> None:
        stack.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name), prepend=True))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


def _product(left: int) -> Formula:
    """Of ``(..., m, k) x (..., k, n)``: every output element takes k; operand ``left`` has k."""
    return lambda args, out: out.numel() * args[left].shape[-1]


def _linear(args: tuple[Any, ...], out: Tensor) -> int:
    return out.numel() * args[1].shape[-1]


def _convolution(args: tuple[Any, ...], out: Tensor) -> int:
    x, weight = args[0], args[1]
    is_transposed = len(args) > 6 and args[6] is True
    return (x if is_transposed else out).numel() * math.prod(weight.shape[1:])


def _conv_forward(args: tuple[Any, ...], out: Tensor) -> int:
    return out.numel() * math.prod(args[1].shape[1:])


def _attention(args: tuple[Any, ...], _: Any) -> int:
    """QK^T and AV of every query head, masked positions included."""
    query, key, value = args[:3]
    scores = math.prod(query.shape[:-1]) * key.shape[-2]
    return scores * (query.shape[-1] + value.shape[-1])


FORMULAS: Mapping[str, Formula] = {
    "mm": _product(0),
    "bmm": _product(0),
    "mv": _product(0),
    "dot": lambda args, _: args[0].numel(),
    "addmm": _product(1),
    "addmm_": _product(1),
    "_addmm_activation": _product(1),
    "baddbmm": _product(1),
    "baddbmm_": _product(1),
    "_grouped_mm": lambda args, out: out.numel() * args[0].shape[-1],
    "dynprune::sorted_product": _linear,
    "addmv": _product(1),
    "addbmm": lambda args, out: out.numel() * args[1].shape[0] * args[1].shape[-1],
    "linear": _linear,
    "mkldnn_linear": _linear,
    "mkldnn::_linear_pointwise": _linear,
    "convolution": _convolution,
    "convolution_overrideable": _convolution,
    "mkldnn_convolution": _conv_forward,
    "mkldnn::_convolution_pointwise": _conv_forward,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention": _attention,
    "_scaled_dot_product_efficient_attention": _attention,
    "_scaled_dot_product_cudnn_attention": _attention,
    "_scaled_dot_product_fused_attention_overrideable": _attention,
}
"""Every operator that is counted, by its plain name."""
