"""Whose fault it is that a model fails: its own code may on foreign layers, ours may not."""

from pathlib import Path
from types import TracebackType

__all__ = ["first_line", "reraise_ours"]

_OURS = Path(__file__).resolve().parents[1]
_BUGS = (AssertionError, AttributeError, LookupError, NameError, TypeError)
"""What a bug of ours raises. Torch's own errors also come of the sizes that a host hands us."""


def reraise_ours(error: Exception) -> None:
    """Raise the error again where a line of dynprune's own is its cause.

    To be called first by every handler of whatever a model may raise.
    """
    if isinstance(error, _BUGS) and _is_ours(error.__traceback__):
        raise error


_HANDING_ON = {"__torch_function__", "__torch_dispatch__"}
"""Methods by which our modes hand a host's own calls on to torch."""


def _is_ours(traceback: TracebackType | None) -> bool:
    last: TracebackType | None = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_name not in _HANDING_ON:
            last = traceback
        traceback = traceback.tb_next
    if last is None:
        return False
    return _OURS in Path(last.tb_frame.f_code.co_filename).resolve().parents


def first_line(error: Exception) -> str:
    """Return an exception's first line, short enough for a table."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:120]
