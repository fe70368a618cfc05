"""The random states of a process: kept, put back, and seeded for the length of a block."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["RandomState", "seeded"]


class RandomState:
    """What Python, NumPy and torch, on every device that is in use, would draw next."""

    def __init__(self) -> None:
        self._python = random.getstate()
        self._numpy = np.random.get_state()
        self._cpu = torch.get_rng_state()
        # Asking a device that is not in use would start it.
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None

    def put_back(self) -> None:
        """Let the same numbers be drawn as when this was made."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from torch's own generators as after ``torch.manual_seed(seed)``, then as before.

    A device that is not in use is left alone: `torch.manual_seed` would seed it for later.
    """
    state = RandomState()
    try:
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(seed)
        yield
    finally:
        state.put_back()
