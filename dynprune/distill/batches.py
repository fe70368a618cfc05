"""Batches as a pure function of the step, sliced for processes and micro-batches."""

import functools
import signal
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset

from dynprune.errors import UsageError
from dynprune.example import Example

__all__ = ["Batch", "BatchSource", "Inputs", "SharedSource", "batches", "micro_batches", "moved"]

Inputs = Tensor | dict[str, Tensor] | Example
"""What a model is called with: normalised images ``(B, 3, H, W)``, keyword arguments, or a call."""

Batch = tuple[Inputs, Tensor | None]
"""Inputs, and labels ``(B, H, W)`` or None where no loss reads them."""

BatchSource = Callable[[int], Batch]
"""From the step (0 for the first) to the whole batch of that optimizer step.

It must be pure: the same batch for the same step, whatever ran before. Then data order survives
resume, and workers change nothing.
"""


@runtime_checkable
class SharedSource(Protocol):
    """A batch source that can make one process's share, so that no process makes the whole."""

    def __call__(self, step: int) -> Batch:
        """Return the whole batch of a step."""

    def share(self, step: int, rank: int, processes: int) -> Batch:
        """Return the part of that batch that is a process's own; the parts are of equal size."""


def batches(
    source: BatchSource,
    steps: range,
    *,
    rank: int = 0,
    processes: int = 1,
    workers: int = 0,
    pin: bool = False,
) -> Iterator[Batch]:
    """Yield the share of one process in the batch of each step.

    Args:
        source: makes batches.
        steps: which, in order.
        rank: of the process.
        processes: that share each batch evenly; each takes every ``processes``-th instance.
        workers: processes that load ahead, two steps each; 0 loads where it is called. The
            source must pickle then. The batches are the same either way.
        pin: whether workers' batches go to pinned memory.

    Raises:
        UsageError: if the batch does not divide by the number of processes.
    """
    load = functools.partial(_share, source, rank, processes)
    if workers == 0:
        yield from map(load, steps)
        return
    loader: DataLoader[Any] = DataLoader(
        _Steps(load),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),
        pin_memory=pin,
        multiprocessing_context="forkserver",
    )
    yield from map(tuple, loader)


def micro_batches(batch: Batch, count: int) -> list[Batch]:
    """Split a batch into ``count`` equal parts.

    Raises:
        UsageError: if it does not divide.
    """
    size = _instances(batch)
    if size % count:
        raise UsageError(
            f"a batch of {size} on this process does not divide into {count} micro-batches; "
            "change the batch size or accumulate"
        )
    part = size // count
    return [_rows(batch, slice(start, start + part)) for start in range(0, size, part)]


def _share(source: BatchSource, rank: int, processes: int, step: int) -> Batch:
    if processes == 1:
        return source(step)
    if isinstance(source, SharedSource):
        return source.share(step, rank, processes)
    batch = source(step)
    size = _instances(batch)
    if size % processes:
        raise UsageError(
            f"a batch of {size} does not divide by {processes} processes; change the batch size"
        )
    return _rows(batch, slice(rank, None, processes))


def moved(batch: Batch, device: torch.device) -> Batch:
    """Return a batch on a device."""
    inputs, labels = batch
    if isinstance(inputs, Example):
        inputs, labels = inputs.to(device), None if labels is None else labels.to(device)
        return inputs, labels
    found: Batch = pytree.tree_map_only(Tensor, lambda x: x.to(device, non_blocking=True), batch)
    return found


def _instances(batch: Batch) -> int:
    inputs, _ = batch
    if isinstance(inputs, Example):
        return inputs.batch
    return len(inputs if isinstance(inputs, Tensor) else next(iter(inputs.values())))


def _rows(batch: Batch, rows: slice) -> Batch:
    """Return some instances of a batch: the same rows of every tensor that has the batch."""
    inputs, labels = batch
    if isinstance(inputs, Example):
        size = inputs.batch

        def cut(leaf: Any) -> Any:
            batched = isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == size
            return leaf[rows] if batched else leaf

        call = Example(*pytree.tree_map(cut, (inputs.args, dict(inputs.kwargs))))
        return call, None if labels is None else labels[rows]
    inputs, labels = pytree.tree_map_only(Tensor, lambda x: x[rows], batch)
    return inputs, labels


class _Steps(Dataset[Batch]):
    """The batch of every step, as the map that a loader reads."""

    def __init__(self, load: Callable[[int], Batch]) -> None:
        self.load = load

    def __getitem__(self, step: int) -> Batch:
        return self.load(step)


def _start_worker(_worker: int) -> None:
    """Leave an interrupt to the main process, and termination to the system."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
