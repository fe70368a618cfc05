"""What runs in this thread while a call does: Python's frames, and a backward pass around them."""

import sys
from types import FrameType

import torch

from dynprune.errors import GateError

__all__ = ["in_backward", "is_running", "lost_in_rerun"]


def is_running(frame: FrameType) -> bool:
    """Tell whether a frame is among those that wait for the caller in this thread."""
    at: FrameType | None = sys._getframe(1)
    while at is not None:
        if at is frame:
            return True
        at = at.f_back
    return False


def in_backward() -> bool:
    """Tell whether this thread is in a backward pass; no public function of torch tells."""
    return torch._C._current_graph_task_id() != -1


def lost_in_rerun(path: str | None = None, what: str = "") -> GateError:
    """Make the error of gates that gradient checkpointing runs again without what they know.

    Args:
        path: of the module that runs again; None where it is a part of a module.
        what: that its gates cannot know.
    """
    if path is None:
        return GateError(
            "A part of a module runs again in the backward pass (gradient checkpointing), without "
            "the call that its gates belong to. Checkpoint whole modules that hold a neuron group."
        )
    return GateError(
        f"{path} runs again in the backward pass (gradient checkpointing) and alone: there its "
        f"gates cannot know {what}, which the modules around it tell. Checkpoint a larger part."
    )
