r"""Compact attention within code that sees heads of full width.

Rotary positions with a cosine for each channel, or a reshape whose numbers are written out, need
heads of full width. There the layers that make neurons compute the kept ones and lay them out with
zeros between; the two products of attention alone are narrowed, where the model's code asks for
them:

.. math:: S = Q_{kept} K_{kept}^T, \qquad O_{kept} = P V_{kept}

Which product of a call meets which neurons is known from the traced graph. A product that has not
the shape it had there is left at full width, which is always right.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode
from torch.utils.hooks import RemovableHandle

from dynprune.errors import GateError
from dynprune.gate.equation import Equation, equation_of
from dynprune.gate.linear import DynamicLinear
from dynprune.gate.reruns import is_running
from dynprune.gate.slots import KeptSlots, Site, along, kept_slots, laid_out

__all__ = ["NarrowProducts", "hosts_of", "narrow_products", "narrowing"]

_PRODUCTS = {
    torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.mm, Tensor.mm,
}  # fmt: skip
_ADDING = {torch.baddbmm, Tensor.baddbmm}
_ASKED_FOR = {F.scaled_dot_product_attention, torch.einsum, *_PRODUCTS, *_ADDING}


class NarrowProducts(TorchFunctionMode):
    """Narrow the products of one call of a host, while it is entered.

    Args:
        sites: gates whose neurons meet in the host's products.
        frame: that calls the host: where it has ended, interrupted, nothing is narrowed. The mode
            is left by its owner where None.
    """

    def __init__(self, sites: Sequence[Site], frame: FrameType | None = None) -> None:
        super().__init__()
        self.sites = tuple(sites)
        self.frame = frame
        self.count = 0
        self.narrowed: set[tuple[str, int]] = set()
        self.known: dict[tuple[str, int], KeptSlots | None] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a function of torch, narrow where it is a product of attention."""
        kwargs = dict(kwargs or {})
        if torch.compiler.is_dynamo_compiling() or func not in _ASKED_FOR or not self._is_asked():
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if func in _PRODUCTS and len(args) == 2 and not kwargs:
            return self._multiply(func, (), *args, {})
        if func in _ADDING and len(args) == 3:
            return self._multiply(func, args[:1], *args[1:], kwargs)
        equation = equation_of(args) if func is torch.einsum else None
        if equation is not None:
            return self._sum(equation, *args[1:])
        self.count += 1
        return func(*args, **kwargs)

    def _is_asked(self) -> bool:
        """Return whether the host's own code asks: no gated layer of ours, and no later code."""
        at: FrameType | None = sys._getframe(1)
        while at is not None and at is not self.frame:
            if at.f_code is DynamicLinear.forward.__code__:
                return False
            at = at.f_back
        return at is self.frame

    @property
    def is_narrow(self) -> bool:
        """Whether every product that gated neurons meet in was narrowed."""
        return all(
            (site.gate.kind, place) in self.narrowed
            for site in self.sites
            for place in site.slots.places
        )

    def check(self) -> None:
        """Say that a call ran the products that were traced.

        Raises:
            GateError: it did not: which neurons met in which product is then unknown.
        """
        expected = self.sites[0].slots.products
        if self.count != expected:
            host = self.sites[0].slots.host or "the model"
            raise GateError(
                f"{host} ran {self.count} products of attention in this call, and {expected} in "
                "the one that it was traced with, so that its gates do not fit it. Gate the model "
                "with an example of this kind, or leave these groups out with apply.ignore."
            )

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **more: Any,
    ) -> Tensor:
        met, mixed = self._at("qk"), self._at("v")
        self.count += 1
        size = value.shape[-1]
        if scale is None:
            scale = query.shape[-1] ** -0.5  # that of the full head
        at_query, at_key = along(met, query.shape, -1), along(met, key.shape, -1)
        if at_query is not None and at_key is not None:
            query, key = query.gather(-1, at_query), key.gather(-1, at_key)
            self.narrowed.add(("qk", self.count - 1))
        at_value = along(mixed, value.shape, -1)
        at_output = None
        if mixed is not None and at_value is not None:
            at_output = along(mixed, (*query.shape[:-1], size), -1)
            if at_output is not None:
                value = value.gather(-1, at_value)
                self.narrowed.add(("v", self.count - 1))
        y = F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **more
        )
        return y if at_output is None else laid_out(y, at_output, size)

    def _multiply(
        self,
        func: Callable[..., Tensor],
        before: tuple[Any, ...],
        first: Tensor,
        second: Tensor,
        kwargs: dict[str, Any],
    ) -> Tensor:
        met, mixed = self._at("qk"), self._at("v")
        self.count += 1
        if met is not None:
            at_first, at_second = along(met, first.shape, -1), along(met, second.shape, -2)
            if at_first is not None and at_second is not None:
                first, second = first.gather(-1, at_first), second.gather(-2, at_second)
                self.narrowed.add(("qk", self.count - 1))
            return func(*before, first, second, **kwargs)
        at = along(mixed, second.shape, -1)
        if at is None or before:
            return func(*before, first, second, **kwargs)
        size = second.shape[-1]
        y = func(first, second.gather(-1, at), **kwargs)
        at_output = along(mixed, (*y.shape[:-1], size), -1)
        if at_output is None:
            return func(first, second, **kwargs)
        self.narrowed.add(("v", self.count - 1))
        return laid_out(y, at_output, size)

    def _sum(self, equation: Equation, first: Tensor, second: Tensor) -> Tensor:
        met, mixed = self._at("qk"), self._at("v")
        self.count += 1
        if met is not None and len(equation.summed) == 1:
            channel = equation.summed
            at_first = equation.along(met, 0, first.shape, channel)
            at_second = equation.along(met, 1, second.shape, channel)
            if at_first is not None and at_second is not None:
                first = first.gather(equation.inputs[0].index(channel), at_first)
                second = second.gather(equation.inputs[1].index(channel), at_second)
                self.narrowed.add(("qk", self.count - 1))
            return torch.einsum(equation.text, first, second)
        channel = equation.passed
        if mixed is None or len(channel) != 1:
            return torch.einsum(equation.text, first, second)
        at = equation.along(mixed, 1, second.shape, channel)
        if at is None:
            return torch.einsum(equation.text, first, second)
        axis = equation.inputs[1].index(channel)
        y = torch.einsum(equation.text, first, second.gather(axis, at))
        axis = equation.output.index(channel)
        shape = [*y.shape[:axis], mixed.width, *y.shape[axis + 1 :]]
        at_output = equation.along(mixed, 2, shape, channel)
        assert at_output is not None
        self.narrowed.add(("v", self.count - 1))
        return y.new_zeros(shape).scatter(axis, at_output, y)

    def _at(self, kind: str) -> KeptSlots | None:
        """Return the slots that the neurons of one kind keep in the product that comes now."""
        place = self.count
        if (kind, place) not in self.known:
            meeting = [s for s in self.sites if s.gate.kind == kind and place in s.slots.places]
            self.known[kind, place] = kept_slots(meeting)
        return self.known[kind, place]


def hosts_of(sites: Sequence[Site]) -> dict[str, list[Site]]:
    """Return the sites of each host, by the host's name."""
    hosts: dict[str, list[Site]] = {}
    for site in sites:
        hosts.setdefault(site.slots.host, []).append(site)
    return hosts


def narrow_products(host: nn.Module, sites: Sequence[Site]) -> list[RemovableHandle]:
    """Narrow the products of every call of a host from now on, in place.

    Code that torch.compile traces runs them whole, with the same result: it follows no such mode
    through all of torch's functions.

    Returns:
        What takes it back.
    """
    hooks = _Hooks(tuple(sites))
    return [
        host.register_forward_pre_hook(hooks.enter),
        host.register_forward_hook(hooks.leave, prepend=True, always_call=True),
    ]


@contextmanager
def narrowing(sites: Sequence[Site]) -> Iterator[None]:
    """Narrow the products that run while the block does, which is one call of their hosts.

    Raises:
        GateError: other products ran than were traced, or one of them was not narrowed.
    """
    with ExitStack() as entered:
        modes = [NarrowProducts(meeting) for meeting in hosts_of(sites).values()]
        for mode in modes:
            entered.enter_context(mode)
        yield
    for mode in modes:
        mode.check()
        if not mode.is_narrow:
            raise GateError("products of its attention are written in a form that is not narrowed.")


class _Thread(threading.local):
    """The hosts that a thread runs, each with the mode that is entered for its call."""

    entered: tuple[tuple["_Hooks", NarrowProducts], ...] = ()


_thread = _Thread()


def _leave_ended(here: FrameType) -> None:
    """Leave the modes of calls that an interrupt ended, for which torch runs no hooks."""
    mode = _get_current_function_mode()
    while isinstance(mode, NarrowProducts) and mode.frame and not is_running(mode.frame, here):
        mode.__exit__(None, None, None)
        mode = _get_current_function_mode()


@dataclass(eq=False)
class _Hooks:
    """Enter and leave the mode around each call of a host, in the thread that calls it."""

    sites: tuple[Site, ...]

    def enter(self, _host: nn.Module, _args: Any) -> None:
        """Narrow products from here on."""
        if torch.compiler.is_dynamo_compiling():
            return
        if all(site.gate.running == "masked" for site in self.sites):
            return
        here = sys._getframe(1)
        _leave_ended(here)
        running = (e for e in _thread.entered if e[1].frame and is_running(e[1].frame, here))
        mode = NarrowProducts(self.sites, here)
        _thread.entered = (*running, (self, mode))
        mode.__enter__()

    def leave(self, _host: nn.Module, _args: Any, output: Any) -> None:
        """Stop narrowing, and check that what ran is what was traced."""
        if torch.compiler.is_dynamo_compiling() or not _thread.entered:
            return
        *outer, (owner, mode) = _thread.entered
        if owner is not self:
            return
        _thread.entered = tuple(outer)
        mode.__exit__(None, None, None)
        if output is not None:
            mode.check()
