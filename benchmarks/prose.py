"""English sentences from the source code that is installed: documentation that every Python has.

Docstrings and long texts are read from the syntax trees; nothing is imported or run. It is a small
corpus of one subject, there for whoever has no text at hand.
"""

import ast
import hashlib
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from dynprune.errors import InputError
from dynprune.files import written_directory

__all__ = ["sentences_of", "source_folders", "write_prose"]

_HELD_OUT = 10  # every tenth sentence
_SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__"}
_BREAK = re.compile(r"\n\s*(?:[-*•]|\d+[.)])\s+|\n\s*\n|\n\s*(?=:\w)")  # items, paragraphs
_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_WORD = re.compile(r"\(?[\"']?[A-Za-z]+(['-][A-Za-z]+)*[\"']?[,;:)]*[.!?]?")


def source_folders(packages: Iterable[str] = ()) -> list[Path]:
    """Return the folders of Python's own library and of some installed packages.

    Raises:
        InputError: if a package is not installed.
    """
    folders = [Path(sysconfig.get_paths()["stdlib"])]
    for name in packages:
        spec = find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise InputError(f"package {name!r} is not installed, so its documentation is not here")
        folders += map(Path, spec.submodule_search_locations)
    return folders


def sentences_of(folders: Iterable[Path]) -> Iterator[str]:
    """Yield every English sentence once, in the order of the files' names."""
    seen: set[str] = set()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            if _SKIPPED.isdisjoint(path.relative_to(folder).parts[:-1]):
                for sentence in _sentences_in(path):
                    key = re.sub(r"\W+", " ", sentence).lower()
                    if key not in seen:
                        seen.add(key)
                        yield sentence


def write_prose(directory: Path, folders: Iterable[Path], *, overwrite: bool = False) -> None:
    """Write ``train.txt`` and ``val.txt``; which one a sentence is in depends on it alone.

    Raises:
        OutputError: if the directory is not empty or cannot be written.
    """
    parts: dict[str, list[str]] = {"train": [], "val": []}
    for sentence in sentences_of(folders):
        digest = hashlib.sha256(sentence.encode()).digest()
        parts["train" if int.from_bytes(digest[:4], "big") % _HELD_OUT else "val"].append(sentence)
    with written_directory(directory, overwrite=overwrite) as beside:
        for name, sentences in parts.items():
            text = "".join(f"{sentence}\n" for sentence in sentences)
            (beside / f"{name}.txt").write_text(text, encoding="utf-8")


def _sentences_in(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings(action="ignore"):  # of old escapes in others' code
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            for paragraph in _BREAK.split(node.value):
                text = " ".join(paragraph.replace("`", "").replace("*", "").split())
                yield from filter(_is_sentence, _END.split(text))


def _is_sentence(text: str) -> bool:
    """Whether it begins and ends like a sentence, and nearly all of it is words."""
    words = text.split()
    if not (6 <= len(words) <= 60 and text[0].isupper() and text[-1] in ".!?"):
        return False
    return sum(bool(_WORD.fullmatch(word)) for word in words) >= 0.9 * len(words)
