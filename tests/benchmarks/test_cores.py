"""Cores share a cache where exchange between threads takes little more than local work."""

from collections.abc import Callable, Iterator
from itertools import accumulate, chain

import pytest
import torch

from benchmarks.cores import APART, share_a_cache


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def clock(across: float, within: float) -> Callable[[], float]:
    """Let every exchange take ``across`` and everything local ``within``, but for the first."""
    lengths = [100.0, *[across] * 4, *[within] * 4]
    readings = accumulate(chain.from_iterable((0.0, length) for length in lengths))
    return readings.__next__


def test_cores_share_a_cache_where_exchange_is_about_as_fast_as_local_work() -> None:
    assert share_a_cache(clock=clock(across=APART * 0.9, within=1.0))


def test_cores_are_apart_where_exchange_takes_far_longer() -> None:
    assert not share_a_cache(clock=clock(across=APART * 1.1, within=1.0))


def test_one_thread_exchanges_nothing() -> None:
    torch.set_num_threads(1)
    assert share_a_cache(clock=lambda: pytest.fail("nothing is to be timed"))


def test_the_machines_own_clock_is_read() -> None:
    assert share_a_cache() in {True, False}
