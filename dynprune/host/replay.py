"""Run a call of a model again from some module on: what ran before gives what it gave."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dynprune.host.replacing import forwards_replaced

__all__ = ["Recording", "record"]

_PLAIN = (bool, int, float, str, type(None))


@dataclass
class _Run:
    """One run of one module.

    Attributes:
        start: when it began, counted in beginnings and ends of modules.
        end: when it returned; None where it has not.
        output: what it returned; None where that cannot be given again.
        versions: of the tensors in it, which tell whether they were written to since.
    """

    start: int
    end: int | None = None
    output: Any = None
    versions: tuple[int, ...] = ()


class Recording:
    """What the modules of a model gave in one call, as references.

    Args:
        model: that ran.
        runs: module name -> its run; modules that ran several times are left out.
    """

    def __init__(self, model: nn.Module, runs: dict[str, _Run]) -> None:
        self.model = model
        self._runs = runs

    @contextmanager
    def until(self, names: Collection[str]) -> Iterator[None]:
        """Let whatever ended before these modules began give its output again, in place.

        The caller runs the same call; what these modules compute may differ. Modules that act on
        anything but their output, which later ones read, do not do so again: the caller must see
        whether an unchanged call still gives the same.

        Args:
            names: modules that run anew, with all that came after the first of them.
        """
        first = min((self._runs[name].start for name in names if name in self._runs), default=0)
        given = {
            self.model.get_submodule(name): _giving(run.output)
            for name, run in self._runs.items()
            if run.end is not None and run.end < first and _holds(run)
        }
        with forwards_replaced(given):
            yield


def record(
    model: nn.Module, run: Callable[[], Any], *, but: type[nn.Module] | tuple[()] = ()
) -> tuple[Any, Recording]:
    """Run a call and record what every module with parts and parameters of its own gives.

    Args:
        model: in eval mode; without gradients.
        run: calls it.
        but: a kind of module that always runs again.

    Returns:
        What ``run`` returned, and the recording.
    """
    clock = count()
    runs: dict[str, _Run] = {}
    again: set[str] = set()
    handles = []
    for name, module in model.named_modules():
        weighs = name and _has_parts(module) and not isinstance(module, but)

        def begin(_module: nn.Module, _args: Any, name: str = name) -> None:
            if name in runs:
                again.add(name)
            runs[name] = _Run(next(clock))

        def end(_module: nn.Module, _args: Any, output: Any, name: str = name) -> None:
            made = runs[name]
            made.end = next(clock)
            leaves = pytree.tree_leaves(output)
            if all(isinstance(leaf, (Tensor, *_PLAIN)) for leaf in leaves):
                made.output = output
                made.versions = _versions(leaves)

        handles.append(module.register_forward_pre_hook(begin))
        if weighs:
            handles.append(module.register_forward_hook(end))
    try:
        result = run()
    finally:
        for handle in handles:
            handle.remove()
    return result, Recording(model, {k: v for k, v in runs.items() if k not in again})


def _has_parts(module: nn.Module) -> bool:
    return any(True for _ in module.children()) and next(module.parameters(), None) is not None


def _versions(leaves: list[Any]) -> tuple[int, ...]:
    # The counter of writes in place has no public name.
    return tuple(leaf._version for leaf in leaves if isinstance(leaf, Tensor))


def _holds(run: _Run) -> bool:
    """Whether a run's output is known and was not written to since."""
    return run.output is not None and _versions(pytree.tree_leaves(run.output)) == run.versions


def _giving(output: Any) -> Callable[..., Any]:
    def forward(*_args: Any, **_kwargs: Any) -> Any:
        return pytree.tree_map_only(Tensor, torch.clone, output)

    return forward
