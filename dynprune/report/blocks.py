"""Layers summed up by block and by purpose, so that a deep model still fits on a page."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dynprune.measure.macs import LayerMacs

__all__ = ["PARTS", "Block", "block_of", "sum_blocks"]

PARTS = ("qk", "v", "ffn", "gates", "other")
"""What a module belongs to: queries, keys and the attention between them; values; hidden layers;
the gates; and all else."""

MOST_BLOCKS = 40  # before blocks are summed up in turn
GATE = " (gate)"  # how `dynprune.measure.macs` marks a gate's own row


@dataclass(frozen=True)
class Block:
    """Multiply-adds of one block.

    Attributes:
        name: of the block.
        dense: of each of `PARTS`, in the dense model.
        pruned: likewise, in the pruned one.
    """

    name: str
    dense: tuple[int, ...]
    pruned: tuple[int, ...]

    @property
    def size(self) -> int:
        """All of the dearer form."""
        return max(sum(self.dense), sum(self.pruned))


def sum_blocks(layers: Sequence[LayerMacs], parts: Mapping[str, str]) -> list[Block]:
    """Sum layers up by the deepest blocks of which there are at most `MOST_BLOCKS`.

    A module that only the pruned model has, such as a rewritten head, takes in the layers of the
    dense model that it replaces: those below it.

    Args:
        layers: module by module.
        parts: module -> one of `PARTS`; ``other`` where it is not named.
    """
    level = max((len(_numbered(layer.name)) for layer in layers), default=0)
    while True:
        blocks = _sum(layers, parts, level)
        if len(blocks) <= MOST_BLOCKS or level <= 1:
            return blocks
        level -= 1


def block_of(name: str, level: int = 99) -> str:
    """Return the block that a module lies in: its name up to the last of ``level`` numbers.

    Example:
        >>> block_of("encoder.stages.1.blocks.0.mlp.fc1"), block_of("head.fuse.proj.conv")
        ('encoder.stages.1.blocks.0', 'head.fuse')
        >>> block_of("encoder.stages.1.blocks.0.mlp.fc1", 1), block_of("")
        ('encoder.stages.1', '(the model itself)')
    """
    components = name.split(".")
    places = _numbered(name)[: max(1, level)]
    return ".".join(components[: places[-1] + 1 if places else 2]) or "(the model itself)"


def _sum(layers: Sequence[LayerMacs], parts: Mapping[str, str], level: int) -> list[Block]:
    owners = list(_owners(layers))
    sums: dict[str, tuple[list[int], list[int]]] = {}
    for layer in layers:
        name = layer.name.removesuffix(GATE)
        part = PARTS.index("gates" if name != layer.name else parts.get(name, "other"))
        inside = (own for own in owners if f"{name}.".startswith(f"{own}."))
        block = next(inside, None) or block_of(name, level)
        dense, pruned = sums.setdefault(block, ([0] * len(PARTS), [0] * len(PARTS)))
        dense[part] += layer.dense
        pruned[part] += layer.pruned
    return [Block(name, tuple(dense), tuple(pruned)) for name, (dense, pruned) in sums.items()]


def _owners(layers: Sequence[LayerMacs]) -> Iterator[str]:
    """Yield the modules that only the pruned model has."""
    for layer in layers:
        if layer.pruned and not layer.dense and layer.name and not layer.name.endswith(GATE):
            yield layer.name


def _numbered(name: str) -> list[int]:
    """Places of the numbers among a dotted name's components."""
    return [place for place, component in enumerate(name.split(".")) if component.isdigit()]
