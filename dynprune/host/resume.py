"""Run a call of a model again and again, each time to a later place, without starting over.

What modules gave before the place where the next run has to begin is kept and given again. Of what
was given long before only the shape is kept: numbers that are no numbers stand in for it, and where
any of these comes out, the call is run from its start.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dynprune.example import Example
from dynprune.host.replacing import forwards_replaced

__all__ = ["Given", "Reached", "Resumer"]

LATEST = 3
"""Runs whose outputs are kept as they are."""

_PLAIN = (bool, int, float, str, type(None))


class Reached(Exception):  # noqa: N818 - not an error: all that was asked for has been seen
    """Raised inside a run by whoever has seen enough of it."""


@dataclass
class Given:
    """What the modules of a model gave in one call, as far as later runs of it need that.

    Attributes:
        outputs: module name -> output; no module in it is inside another one.
        runs: module name -> the run that gave it.
        count: runs so far in which anything was given.
    """

    outputs: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)
    count: int = 0

    def put(self, name: str, output: Any) -> None:
        """Keep what a module gave, in the place of what its own parts gave."""
        for inner in [other for other in self.outputs if other.startswith(f"{name}.")]:
            del self.outputs[inner], self.runs[inner]
        self.outputs[name], self.runs[name] = output, self.count

    def forget(self) -> None:
        """Put shapes in the place of outputs that are older than the latest."""
        if self.count in self.runs.values():
            self.count += 1
        for name, run in self.runs.items():
            if run < self.count - LATEST:
                self.outputs[name] = pytree.tree_map_only(Tensor, _shape_alone, self.outputs[name])

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        leaves = (x for x in pytree.tree_leaves(self.outputs) if isinstance(x, Tensor))
        return sum(x.numel() * x.element_size() for x in leaves if not _is_shape(x))


class Resumer:
    """Runs calls of one model, each from where an earlier run of it left.

    Args:
        model: in eval mode; without gradients. Modules with parts and parameters of their own give
            what they gave; all others run.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._modules = {
            name: module
            for name, module in model.named_modules()
            if name and any(True for _ in module.children()) and any(True for _ in _weights(module))
        }

    def run(
        self, call: Example, given: Given, until: Collection[nn.Module], *, whole: bool = False
    ) -> None:
        """Run a call, which may end with `Reached`.

        Args:
            call: that is run.
            given: by earlier runs of this call; what this one gives is added.
            until: modules whose outputs may differ in the next run, and those that have to run in
                it; what ends before the first of them begins is kept.
            whole: run it from the start.
        """
        replaced = set() if whole else set(given.outputs)
        ended: list[tuple[str, Any]] = []
        begun: set[str] = set()
        again: set[str] = set()
        watched = True

        def begin(name: str) -> None:
            (again if name in begun else begun).add(name)

        def end(name: str, output: Any) -> None:
            inside = any(name == other or name.startswith(f"{other}.") for other in replaced)
            if watched and not inside and _can_be_given(output):
                ended.append((name, output))

        def stop(_module: nn.Module, _args: Any) -> None:
            nonlocal watched
            watched = False

        handles = [module.register_forward_pre_hook(stop, prepend=True) for module in until]
        for name, module in self._modules.items():
            handles.append(module.register_forward_pre_hook(_named(begin, name)))
            handles.append(module.register_forward_hook(_named_output(end, name)))
        try:
            with forwards_replaced({self._modules[n]: _giving(given.outputs[n]) for n in replaced}):
                call.run(self.model)
        except Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        for name, output in ended:
            if name not in again:
                given.put(name, output)
        given.forget()


def _weights(module: nn.Module) -> Iterator[nn.Parameter]:
    yield from module.parameters()


def _named(note: Callable[[str], None], name: str) -> Callable[[nn.Module, Any], None]:
    return lambda _module, _args: note(name)


def _named_output(
    note: Callable[[str, Any], None], name: str
) -> Callable[[nn.Module, Any, Any], None]:
    return lambda _module, _args, output: note(name, output)


def _can_be_given(output: Any) -> bool:
    return all(isinstance(leaf, (Tensor, *_PLAIN)) for leaf in pytree.tree_leaves(output))


def _giving(output: Any) -> Callable[..., Any]:
    def forward(*_args: Any, **_kwargs: Any) -> Any:
        # A copy: code between modules may write into what they give.
        return pytree.tree_map_only(Tensor, lambda x: x if _is_shape(x) else x.clone(), output)

    return forward


def _shape_alone(x: Tensor) -> Tensor:
    """Return a tensor of the same shape that takes no memory; whole numbers stay."""
    if not x.is_floating_point() or x.dim() == 0:
        return x
    return torch.full((), torch.nan, dtype=x.dtype, device=x.device).expand(x.shape)


def _is_shape(x: Tensor) -> bool:
    return x.dim() > 0 and x.numel() > 1 and not any(x.stride()) and bool(x.flatten()[0].isnan())
