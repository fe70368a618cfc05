"""What every section of a recipe obeys, and the kinds of value that sections share."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt

__all__ = ["Fraction", "ModulePattern", "Name", "Pattern", "Section", "Share", "Size"]

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
    return text


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
