"""Whether the cores that compute share a cache, which on a virtual machine may change."""

import time
from collections.abc import Callable

import torch

__all__ = ["share_a_cache"]

_VALUES = 1 << 18
"""Values that threads exchange: 1 MB, of which every thread's share fits its own cache."""

APART = 3.5
"""Exchange takes this many times as long as local work where cores share no cache: 1.9 where two
cores of a virtual machine stood at one L3, 7 where they stood at two."""


def share_a_cache(*, clock: Callable[[], float] = time.perf_counter) -> bool:
    """Return whether torch's threads read what another wrote nearly as fast as what they wrote.

    A virtual machine's cores may stand at one last-level cache now and at two a minute later. What
    threads hand to each other then takes the way between the caches: small operators in turns, as
    gates are, pay for it, and large products hardly do.

    Args:
        clock: in seconds.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return True
    shape = (threads, _VALUES // threads)
    values, other = torch.randn(shape), torch.empty(shape)

    def swap(axis: int) -> float:
        """Write the values backwards along an axis, which hands them over if it is the first."""
        start = clock()
        for source, target in ((values, other), (other, values)) * 3:
            target.copy_(source.flip(axis))
        return clock() - start

    swap(0)
    across, within = (min(swap(axis) for _ in range(4)) for axis in (0, 1))
    return across < APART * within
