"""The processes of a run: one, or as many as ``accelerate launch`` or ``torchrun`` started."""

import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from dynprune.errors import UsageError

__all__ = ["is_first_process", "join_processes"]

_PATIENCE = timedelta(hours=6)
"""How long a process waits for another: the first one validates while the others wait."""


def is_first_process() -> bool:
    """Whether this process is the one that writes; true where there is only one."""
    return int(os.environ.get("RANK", "0")) == 0


def join_processes(device: str | None = None) -> Accelerator:
    """Join the other processes of the run, over NCCL on GPUs and over gloo on CPUs.

    Args:
        device: ``cpu`` or ``cuda``; None takes a GPU where there is one.

    Raises:
        UsageError: if there is no such device.
    """
    has_none = device is None and not torch.accelerator.is_available()
    accelerator = Accelerator(
        # On machines without a GPU, too: launched processes would not find each other otherwise.
        cpu=device == "cpu" or has_none,
        mixed_precision="no",  # the run's own setting decides, whatever accelerate was told
        kwargs_handlers=[
            # The losses of a stage need not reach every parameter.
            DistributedDataParallelKwargs(find_unused_parameters=True),
            InitProcessGroupKwargs(timeout=_PATIENCE),
        ],
    )
    if device is not None and accelerator.device.type != torch.device(device).type:
        raise UsageError(
            f"device {device!r} was asked for, but this machine gives {accelerator.device}"
        )
    return accelerator
