"""Check what files declare against the bytes that they hold, before any memory is taken for it.

A configuration of a few bytes can ask for a layer of a terabyte. So an architecture is built on
torch's meta device first, where tensors have shapes and no memory, and is refused as soon as it
holds more than its weights' file, or this machine, could.
"""

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn.modules import module as hooks

from dynprune.errors import InputError

__all__ = [
    "Header",
    "check_architecture",
    "check_numbers",
    "first_line",
    "machine_elements",
    "read_header",
]

MOST_MODULES = 100_000
_MOST_REPEATED = 10_000
_REPEATED = ("layer", "depth", "block", "stage", "expert")
_MOST_COUNTED = 2**20
_COUNTED = ("label", "vocab")
_MOST_ELEMENTS = 2**31
_SHOWN = 200  # characters of another library's message


@dataclass(frozen=True)
class Header:
    """What a safetensors file holds, by its header; the tensors are not read.

    Attributes:
        elements: of all tensors.
        widest: the largest dimension of any tensor.
    """

    elements: int
    widest: int


def read_header(path: Path) -> Header:
    """Read the header of a safetensors file.

    Raises:
        InputError: where the file is missing, truncated or damaged, or its header declares more
            than the file holds.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing; the directory is not complete.")
    try:
        with safe_open(path, framework="pt") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is truncated or no safetensors file, or damaged ({first_line(error)}); "
            "copy it again"
        ) from error
    elements = sum(torch.Size(shape).numel() for shape in shapes)
    return Header(elements, max((n for shape in shapes for n in shape), default=0))


def first_line(error: BaseException) -> str:
    """Return the part of a third party's message that fits in ours."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:_SHOWN].rstrip(".")


def machine_elements() -> int:
    """Return the float32 numbers that this machine's memory could hold."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    except (AttributeError, OSError, ValueError):  # not on Windows
        return 2**36


def check_numbers(
    values: Any, key: str = "", *, where: str = "the configuration", most: int | None = None
) -> None:
    """Refuse numbers of a configuration that no model has, at any depth of it.

    Layers are counted in thousands at most, labels and words in a million, and no size goes
    beyond two thousand million.

    Args:
        values: mappings, lists and numbers.
        key: under which they stand.
        where: they stand, for the message.
        most: limit of every number, in the place of those above.

    Raises:
        InputError: naming the key.
    """
    if isinstance(values, Mapping):
        for name, value in values.items():
            check_numbers(value, str(name), where=where, most=most)
    elif isinstance(values, (list, tuple)):
        for value in values:
            check_numbers(value, key, where=where, most=most)
    elif isinstance(values, int) and not isinstance(values, bool):
        limit = _limit(key) if most is None else most
        if abs(values) > limit:
            raise InputError(
                f"{where} says {key[:80]}: {str(values)[:24]}, and at most {limit} is believed"
            )


def _limit(key: str) -> int:
    if any(word in key for word in _COUNTED) and "token" not in key:
        return _MOST_COUNTED
    return _MOST_REPEATED if any(word in key for word in _REPEATED) else _MOST_ELEMENTS


def check_architecture(build: Callable[[], nn.Module], most: int, limit: str) -> None:
    """Refuse an architecture with too many parameters, without taking memory for one of them.

    Args:
        build: makes the architecture; called on the meta device. One that cannot be made there
            is not judged.
        most: parameters, in elements.
        limit: what sets this limit, for the message.

    Raises:
        InputError: it has more, or more modules than any model.
    """
    budget = _Budget(most, limit)
    with ExitStack() as stack:
        stack.enter_context(torch.device("meta"))
        for register, hook in (
            (hooks.register_module_parameter_registration_hook, budget.parameter),
            (hooks.register_module_module_registration_hook, budget.module),
        ):
            stack.callback(register(hook).remove)
        try:
            model = build()
        except InputError:
            raise
        except Exception:  # an architecture that needs real tensors to be built
            return
    budget.check(sum({id(p): p.numel() for p in model.parameters()}.values()))


class _Budget:
    """Counts what one thread registers while an architecture is built."""

    def __init__(self, most: int, limit: str) -> None:
        self.most, self.limit = most, limit
        self.thread = threading.get_ident()
        self.modules = self.elements = 0

    def parameter(self, _module: nn.Module, _name: str, value: nn.Parameter | None) -> None:
        if value is None or threading.get_ident() != self.thread:
            return
        self.check(value.numel())
        self.elements += value.numel()
        self.check(self.elements // 4)  # tied and replaced parameters are registered repeatedly

    def module(self, _module: nn.Module, _name: str, _child: nn.Module | None) -> None:
        if threading.get_ident() == self.thread:
            self.modules += 1
            if self.modules > MOST_MODULES:
                raise InputError(f"it declares more than {MOST_MODULES} modules")

    def check(self, elements: int) -> None:
        if elements > self.most:
            raise InputError(
                f"it declares at least {elements} parameters, more than {self.limit} holds "
                f"({self.most})"
            )
