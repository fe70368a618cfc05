"""How far long work has come, for whoever asked to be told in this thread."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

__all__ = ["Listener", "report_progress", "reported", "reporting"]

Item = TypeVar("Item")

Listener = Callable[[str, int, int], None]
"""``listener(part, done, total)``: called before the first item of a part and after each."""


class _Listeners(threading.local):
    """The listener of each thread: work in one thread is not another's."""

    current: Listener | None = None


_LISTENERS = _Listeners()


@contextmanager
def reporting(listener: Listener) -> Iterator[None]:
    """Call a listener while the block runs, in this thread alone; the latest one hears it."""
    before, _LISTENERS.current = _LISTENERS.current, listener
    try:
        yield
    finally:
        _LISTENERS.current = before


def reported(part: str, items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items, and report how many are done.

    Args:
        part: what is being done, in a word or two, such as ``calibrate``.
        items: what it is done with; nothing is reported where their number is not known.
    """
    if not isinstance(items, Sized):
        yield from items
        return
    total = len(items)
    report_progress(part, 0, total)
    for done, item in enumerate(items, start=1):
        yield item
        report_progress(part, done, total)


def report_progress(part: str, done: int, total: int) -> None:
    """Tell this thread's listener, if there is one, how far a part of the work has come."""
    if _LISTENERS.current is not None:
        _LISTENERS.current(part, done, total)
