"""Import a function that the user typed as ``module:function``; never one that a file names."""

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dynprune.errors import InputError

__all__ = ["import_function", "working_directory_on_path"]


def import_function(name: str) -> Callable[..., Any]:
    """Import ``module:function``; the working directory counts as on the path.

    Raises:
        InputError: if there is no such module or function, or importing it raises.
    """
    module_name, _, attribute = name.partition(":")
    with working_directory_on_path():
        try:
            function: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise InputError(
                f"{name}: no module {error.name!r}; it is looked for in the working directory "
                "and in the installed packages"
            ) from error
        except Exception as error:  # the user's own code: whatever it raises is the answer
            raise InputError(
                f"{name}: importing {module_name} raised {type(error).__name__}: {error}"
            ) from error
    for part in attribute.split("."):
        function = getattr(function, part, None)
    if not callable(function):
        raise InputError(f"{name}: {module_name} has no function {attribute!r}")
    found: Callable[..., Any] = function
    return found


@contextmanager
def working_directory_on_path() -> Iterator[None]:
    """Let the block import from the working directory."""
    here = os.getcwd()
    if here in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)
