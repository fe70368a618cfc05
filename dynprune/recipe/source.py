"""YAML that can only be data: no tags, no duplicate keys, no anchors that explode, a bounded size.

Scalars follow YAML 1.2's core schema, in which ``on`` and ``no`` are words, ``1e-4`` is a number
and ``0:30`` is not one; PyYAML's own YAML 1.1 reads them as True, a string and 30.
"""

import re
from typing import Any

import yaml

from dynprune.errors import RecipeError

__all__ = ["NODE_LIMIT", "SIZE_LIMIT_BYTES", "dump_yaml", "parse_yaml"]

SIZE_LIMIT_BYTES = 256 * 1024
NODE_LIMIT = 20_000


class _DataLoader(yaml.SafeLoader):
    """A SafeLoader that refuses what a recipe has no use for."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012 (PyYAML's own attribute)

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse a node with an explicit tag."""
        event = self.peek_event()
        tag = getattr(event, "tag", None)
        if tag is not None and not isinstance(event, yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                None, None, f"the tag {tag!r} is refused: write plain values", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that is neither a word nor a whole number, or occurs twice."""
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:int" and key_node.value.isdecimal():
                key_node.tag = "tag:yaml.org,2002:str"  # JSON, which validation reads, has words
            if key_node.tag != "tag:yaml.org,2002:str":
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a word or a whole number", key_node.start_mark
                )
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} is there twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return yaml.constructor.BaseConstructor.construct_mapping(self, node, deep=deep)

    def construct_yaml_int(self, node: Any) -> int:
        """Read a decimal number; a leading zero means nothing."""
        return int(self.construct_scalar(node))

    def construct_yaml_float(self, node: Any) -> float:
        """Read a decimal fraction, with or without an exponent."""
        text = str(self.construct_scalar(node)).lower()
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))


class _DataDumper(yaml.SafeDumper):
    """A SafeDumper that quotes what `_DataLoader` would misread, and uses no aliases."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012 (PyYAML's own attribute)

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 (PyYAML's own signature)
        """Write every value out."""
        return True


for _kind, _expression, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)"
        r"|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    for _format in (_DataLoader, _DataDumper):
        _format.add_implicit_resolver(
            f"tag:yaml.org,2002:{_kind}", re.compile(rf"^(?:{_expression})$"), _first
        )
_DataLoader.add_constructor("tag:yaml.org,2002:int", _DataLoader.construct_yaml_int)
_DataLoader.add_constructor("tag:yaml.org,2002:float", _DataLoader.construct_yaml_float)


def _count(node: yaml.Node) -> None:
    """Walk a node as if its aliases were written out, and refuse one that grows past the limit."""
    stack, visited = [node], 0
    while stack:
        visited += 1
        if visited > NODE_LIMIT:
            raise yaml.YAMLError(
                f"it holds more than {NODE_LIMIT} values once aliases are resolved"
            )
        top = stack.pop()
        if isinstance(top, yaml.MappingNode):
            stack.extend(part for pair in top.value for part in pair)
        elif isinstance(top, yaml.SequenceNode):
            stack.extend(top.value)


def parse_yaml(text: str, *, origin: str) -> Any:
    """Read one YAML document of plain data.

    Args:
        text: the document.
        origin: what it is called in messages, such as its path.

    Returns:
        Dictionaries, lists, strings, numbers, booleans and None.

    Raises:
        RecipeError: it is not YAML, or not plain data, or too large.

    Example:
        >>> parse_yaml("{on: 1e-4, off: [no, 010]}", origin="example")
        {'on': 0.0001, 'off': ['no', 10]}
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > SIZE_LIMIT_BYTES:
        raise RecipeError(
            f"{origin} has {size} bytes; a recipe has at most {SIZE_LIMIT_BYTES}. Is it a recipe?"
        )
    loader = None
    try:
        loader = _DataLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise RecipeError(f"{origin} is not a recipe: {_explain(error)}") from None
    except (RecursionError, ValueError) as error:
        raise RecipeError(
            f"{origin} is not a recipe: it is nested too deeply or holds a number out of range "
            f"({type(error).__name__})"
        ) from None
    finally:
        if loader is not None:
            loader.dispose()


def dump_yaml(data: Any) -> str:
    """Write plain data as a YAML document that `parse_yaml` reads back to equal data."""
    return yaml.dump(
        data,
        Dumper=_DataDumper,
        sort_keys=False,
        allow_unicode=True,
        width=100,
        default_flow_style=None,
    )


def _explain(error: yaml.YAMLError) -> str:
    """Say in one line what PyYAML found, and where."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    parts = (getattr(error, "context", None), getattr(error, "problem", None))
    what = ", ".join(part for part in parts if part) or " ".join(str(error).split())
    return f"{what} (line {mark.line + 1}, column {mark.column + 1})" if mark else what
