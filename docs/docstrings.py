"""Read docstrings for the site as they are written: ``Example:`` holds a session of Python."""

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Call a section by the name that the parser knows; it then shows the session as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of an object as it was loaded, not its file."""
        if obj.docstring is not None:
            renamed = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
            obj.docstring.value = renamed
