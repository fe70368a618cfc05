"""A thousand damaged versions of each file that a user may be handed.

Half of them are damaged blindly, byte by byte; the other half keep the file's outer form (a
manifest stays JSON, a recipe YAML, a header as long as it says, a PNG's checksums right) and change
what it declares, so that they reach the code behind the parser.
"""

import json
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["MUTATORS", "mutations"]

Mutator = Callable[[bytes, random.Random], bytes]

_NUMBERS: tuple[Any, ...] = (
    -1, 0, 1, 3, 7, 255, 65_537, 2**31 - 1, 2**31, 2**40, 2**63, 10**30, 1e308, -1e-300, 0.5,
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    *_NUMBERS, None, True, "", "x", "x" * 10_000, "../../etc/passwd", "é\u202e\x00", [], {}, [[]],
    {"a": 1}, [1] * 1000,
)  # fmt: skip


def mutations(name: str, original: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield damaged versions of a file, the same ones for a seed; none equals the original.

    Args:
        name: key of `MUTATORS`.
        original: the whole file.
        count: how many.
        seed: of the damage.
    """
    chance = random.Random(f"{name} {seed}")
    made = 0
    while made < count:
        shape = MUTATORS[name] if chance.random() < 0.5 else blind
        damaged = original
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            damaged = shape(damaged, chance)
        if damaged != original:
            made += 1
            yield damaged


def blind(data: bytes, chance: random.Random) -> bytes:
    """Flip, replace, insert, cut, repeat or swap bytes anywhere."""
    if not data:
        return chance.randbytes(8)
    at = chance.randrange(len(data))
    length = min(chance.choice((1, 1, 2, 4, 8, 64, 1024)), len(data) - at)
    kind = chance.randrange(7)
    if kind == 0:
        return data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + chance.randbytes(length) + data[at + length :]
    if kind == 2:
        return data[:at] + chance.randbytes(length) + data[at:]
    if kind == 3:
        return data[:at] + data[at + length :]
    if kind == 4:
        return data[:at]
    if kind == 5:
        return data[: at + length] + data[at : at + length] * chance.choice((1, 8)) + data[at:]
    other = chance.randrange(len(data))
    piece = data[other : other + length]
    return data[:at] + piece + data[at + len(piece) :]


def declared_json(data: bytes, chance: random.Random) -> bytes:
    """Change one value, key or item of a JSON document."""
    try:
        document = json.loads(data)
    except ValueError:
        return blind(data, chance)
    return json.dumps(_change(document, chance)).encode()


def declared_yaml(data: bytes, chance: random.Random) -> bytes:
    """Change one number or word of a YAML document, or plant something hostile in it."""
    text = data.decode("utf-8", "replace")
    planted = ("!!python/object/apply:os.system ['true']", "&a [*a, *a]", "{{", "'", "\t", "---\n")
    spots = list(re.finditer(r"-?\d+(\.\d+)?(e-?\d+)?|[A-Za-z_][\w-]*", text))
    if not spots:
        return blind(data, chance)
    spot = chance.choice(spots)
    if chance.random() < 0.2:
        new = chance.choice(planted)
    elif spot.group()[0].isalpha():
        new = chance.choice(spots).group()
    else:
        new = repr(chance.choice(_NUMBERS))
    return (text[: spot.start()] + new + text[spot.end() :]).encode()


def declared_safetensors(data: bytes, chance: random.Random) -> bytes:
    """Change what the header declares, and keep its length right; or forge the length alone."""
    (length,) = struct.unpack("<Q", data[:8].ljust(8, b"\0"))
    if length > len(data) or chance.random() < 0.1:
        forged = chance.choice((0, 1, 2**20, 2**32, 2**40, 2**63 - 1, 2**64 - 1, len(data)))
        return struct.pack("<Q", forged) + data[8:]
    header = declared_json(data[8 : 8 + length], chance)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def declared_picture(data: bytes, chance: random.Random) -> bytes:
    """Change one chunk of a PNG and set its checksum right; or one marker of a JPEG."""
    if not data.startswith(b"\x89PNG"):
        marks = [found.start() for found in re.finditer(rb"\xff[\xc0-\xfe]", data)]
        at = chance.choice(marks) + chance.randrange(12) if marks else 0
        return data[:at] + chance.randbytes(2) + data[at + 2 :]
    chunks = list(_chunks(data))
    if not chunks:
        return blind(data, chance)
    index = chance.randrange(len(chunks))
    kind, body = chunks[index]
    if kind == b"IHDR" and len(body) == 13:
        at = chance.randrange(13)
        value = chance.choice((0, 1, 2, 3, 4, 6, 8, 16, 0x7F, 0xFF))
        body = body[:at] + bytes([value]) + body[at + 1 :]
    else:
        kind = chance.choice((kind, b"zTXt", b"iTXt", b"tRNS", b"PLTE", b"eXIf", b"iCCP"))
        body = blind(body, chance)
    chunks[index] = (kind, body)
    return data[:8] + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


MUTATORS: dict[str, Mutator] = {
    "model.safetensors": declared_safetensors,
    "dynprune.json": declared_json,
    "recipe.yaml": declared_yaml,
    "picture": declared_picture,
}
"""For each kind of file, the mutator that keeps its outer form."""


def _change(document: Any, chance: random.Random) -> Any:
    """Return a copy of a document with one value replaced, removed or repeated, at any depth."""
    if isinstance(document, dict) and document and chance.random() < 0.95:
        key = chance.choice(list(document))
        rest = {name: value for name, value in document.items() if name != key}
        kind = chance.random()
        if kind < 0.05:
            return rest
        if kind < 0.1:
            return {**rest, str(chance.choice(_VALUES)): document[key]}
        return {**document, key: _change(document[key], chance)}
    if isinstance(document, list) and document and chance.random() < 0.95:
        index = chance.randrange(len(document))
        kind = chance.random()
        if kind < 0.05:
            return document[:index] + document[index + 1 :]
        if kind < 0.1:
            return document[:index] + document[index:] * 2
        return [*document[:index], _change(document[index], chance), *document[index + 1 :]]
    return chance.choice(_VALUES)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length
