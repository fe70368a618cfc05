"""What every section of a recipe obeys, and the kinds of value that sections share."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt

__all__ = ["Fraction", "ModulePattern", "Name", "Pattern", "Section", "Share", "Size"]

_MOST_REPEATS = 4

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Size = Annotated[tuple[PositiveInt, PositiveInt], "(height, width)"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]


def _check_pattern(text: str) -> str:
    """Refuse an empty pattern, and a regular expression that does not compile."""
    if not text:
        raise ValueError("is empty; write a group's name, or 're:' and a regular expression")
    if text.startswith("re:"):
        try:
            re.compile(text[3:])
        except re.error as error:
            raise ValueError(f"is not a regular expression: {error}") from None
        if _may_not_end(text[3:]):
            raise ValueError(
                "may take for ever to match: it repeats a group that repeats or chooses, or holds "
                f"more than {_MOST_REPEATS} of * + {{}}; write it plainer"
            )
    return text


def _may_not_end(expression: str) -> bool:
    """Whether the time that an expression takes may grow faster than a name's length to the 4th.

    It does where a repeated group holds another repeat or a choice; else each repeat adds a power.
    """
    repeats = 0
    inside = [False]  # whether the group, and each around it, repeats or chooses something
    plain = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "x", expression)
    for position, letter in enumerate(plain):
        repeated = plain[position + 1 : position + 2] in ("*", "+", "{")
        if letter == "(":
            inside.append(False)
        elif letter == ")" and len(inside) > 1:
            if inside.pop():
                if repeated:
                    return True
                inside[-1] = True
        elif letter in "*+{":
            repeats += 1
            inside[-1] = True
        elif letter == "|" or (letter == "?" and plain[position - 1 : position] != "("):
            inside[-1] = True
    return repeats > _MOST_REPEATS


Pattern = Annotated[str, Field(max_length=500), AfterValidator(_check_pattern)]
ModulePattern = Annotated[
    str, Field(max_length=500, pattern="^re:"), AfterValidator(_check_pattern)
]


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values never change type, nothing mutates."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )
