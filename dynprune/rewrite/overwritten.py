"""Keep weights that are about to be overwritten, and put them back while they are untrained."""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from dynprune.rewrite.made import note_undo

__all__ = ["overwriting"]

logger = logging.getLogger(__name__)


@dataclass
class _Kept:
    """A parameter's values, and what tells whether those that took their place still stand."""

    parameter: nn.Parameter
    before: Tensor
    after: bytes | None = None


@contextmanager
def overwriting(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let the body overwrite parameters, in place; `undo` returns them their values back.

    It does so unless any of them was trained, or cast to another type, since: then all stay as
    they are. Where the body fails, they get their values back.

    Args:
        model: that holds them.
        parameters: as many copies are kept in memory.
    """
    kept = [_Kept(parameter, parameter.detach().clone()) for parameter in parameters]
    note_undo(model, partial(_give_back, kept))
    yield
    for one in kept:
        one.after = _digest(one.parameter)


@torch.no_grad()
def _give_back(kept: list[_Kept], _: nn.Module) -> None:
    if any(one.after is not None and one.after != _digest(one.parameter) for one in kept):
        logger.info("The weights were trained since they were refitted, and stay as they are.")
        return
    for one in kept:
        one.parameter.data.copy_(one.before)


def _digest(parameter: nn.Parameter) -> bytes:
    """Return a fingerprint of a parameter's values and type, however they lie in memory."""
    values = parameter.detach().cpu().contiguous().flatten()
    numbers = values.view(torch.uint8).numpy()
    return hashlib.blake2b(numbers.data, key=str(values.dtype).encode(), digest_size=16).digest()
