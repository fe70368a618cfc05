"""Rows of tables summed up: layers that differ by a number alone share one row."""

import re
from collections.abc import Iterable, Sequence

__all__ = ["merged_names", "name_of", "pattern_of"]

_NUMBER = re.compile(r"\d+")

Numbers = tuple[frozenset[int], ...]


def merged_names(names: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Merge names that differ by numbers into as few as stand for exactly them.

    Args:
        names: such as modules' names.

    Returns:
        For each row its name, in which a number may be a range, and the names it stands for, in
        the order of their first.

    Example:
        >>> merged_names(["layer.0.q", "layer.1.q", "layer.2.q", "layer.0.v"])
        [('layer.0-2.q', ['layer.0.q', 'layer.1.q', 'layer.2.q']), ('layer.0.v', ['layer.0.v'])]
    """
    rows: dict[tuple[str, Numbers], list[str]] = {}
    for name in names:
        numbers = tuple(frozenset([int(found)]) for found in _NUMBER.findall(name))
        rows.setdefault((pattern_of(name), numbers), []).append(name)
    longest = max((len(numbers) for _, numbers in rows), default=0)
    for place in reversed(range(longest)):
        rows = _merged_at(rows, place)
    return [(name_of(own[0], numbers), own) for (_, numbers), own in rows.items()]


def pattern_of(text: str) -> str:
    """Return a text with ``#`` for its numbers.

    Example:
        >>> pattern_of("encoder.layer.11.output")
        'encoder.layer.#.output'
    """
    return _NUMBER.sub("#", text)


def name_of(name: str, numbers: Sequence[frozenset[int]]) -> str:
    """Return a name with ranges in the place of its numbers.

    Example:
        >>> name_of("layer.0.mlp.4", (frozenset({0, 1, 2, 5}), frozenset({4})))
        'layer.0-2,5.mlp.4'
    """
    spans = iter([_spans(own) for own in numbers])
    return _NUMBER.sub(lambda _: next(spans), name)


def _merged_at(
    rows: dict[tuple[str, Numbers], list[str]], place: int
) -> dict[tuple[str, Numbers], list[str]]:
    """Merge the rows that are alike but for the number at one place."""
    alike: dict[object, list[tuple[Numbers, list[str]]]] = {}
    for (pattern, numbers), own in rows.items():
        others = (pattern, numbers[:place], numbers[place + 1 :], len(numbers) > place)
        alike.setdefault(others, []).append((numbers, own))
    merged: dict[tuple[str, Numbers], list[str]] = {}
    for members in alike.values():
        numbers, own = members[0]
        if len(members) > 1:
            union = frozenset().union(*(each[place] for each, _ in members))
            numbers = (*numbers[:place], union, *numbers[place + 1 :])
            own = [name for _, names in members for name in names]
        merged[pattern_of(own[0]), numbers] = own
    return merged


def _spans(numbers: frozenset[int]) -> str:
    """Write numbers as ranges: 0-2,5."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    return ",".join(str(s[0]) if len(s) == 1 else f"{s[0]}-{s[-1]}" for s in spans)
