"""Parts that run again in a backward pass, and Python frames, by which both are told.

`torch.utils.checkpoint` runs a function again when its gradient is asked for, perhaps in another
thread, and without the module hooks that ran around it. What it keeps for that, one object for each
function that it ran, is the one place where a call finds itself again.
"""

from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
import torch.utils.checkpoint

__all__ = ["checkpoint_at", "frames_until", "is_running"]

_FILE = torch.utils.checkpoint.__file__

#: Function of torch's file -> its variable that holds what is kept, and whether it runs again.
_FUNCTIONS = {
    "forward": ("ctx", False),
    "backward": ("ctx", True),
    "checkpoint": ("gen", False),
    "unpack_hook": ("frame", True),
}


def frames_until(first: FrameType, last: FrameType | None) -> Iterator[FrameType]:
    """Return a frame and those that wait for it, up to ``last``, which is left out."""
    at: FrameType | None = first
    while at is not None and at is not last:
        yield at
        at = at.f_back


def is_running(frame: FrameType, inner: FrameType) -> bool:
    """Return whether a frame waits for an inner one."""
    at: FrameType | None = inner
    while at is not None and at is not frame:
        at = at.f_back
    return at is not None


def checkpoint_at(frame: FrameType) -> tuple[Any, bool] | None:
    """Return what torch keeps of the function that this frame runs, and whether it runs it again.

    None where the frame is none of gradient checkpointing.
    """
    code = frame.f_code
    if code.co_filename != _FILE or code.co_name not in _FUNCTIONS:
        return None
    variable, again = _FUNCTIONS[code.co_name]
    found = frame.f_locals.get(variable)
    if variable == "gen":  # a generator waits with what is kept while the function runs
        waiting = getattr(found, "gi_frame", None)
        found = None if waiting is None else waiting.f_locals.get("new_frame")
    return None if found is None else (found, again)
