"""Blocks are the layers summed up: nothing is lost, and a deep model fits."""

from dynprune.measure.macs import LayerMacs
from dynprune.report.blocks import MOST_BLOCKS, Block, sum_blocks


def test_nothing_is_lost(measured) -> None:
    found = measured.found
    blocks = sum_blocks(found.macs.layers, found.parts)
    assert sum(sum(block.dense) for block in blocks) == found.macs.dense
    assert sum(sum(block.pruned) for block in blocks) == found.macs.analytic


def test_parts_are_told_apart_and_a_rewritten_module_takes_in_what_it_replaces() -> None:
    layers = [
        LayerMacs("body.0.fc", 100, 50),
        LayerMacs("body.0.norm", 7, 7),
        LayerMacs("body.0.fc (gate)", 0, 1),
        LayerMacs("head.fuse", 300, 0),
        LayerMacs("head.proj.0", 60, 0),
        LayerMacs("headless.0", 5, 5),
        LayerMacs("head", 0, 20),
    ]
    assert sum_blocks(layers, {"body.0.fc": "ffn"}) == [
        Block("body.0", (0, 0, 100, 0, 7), (0, 0, 50, 1, 7)),
        Block("head", (0, 0, 0, 0, 360), (0, 0, 0, 0, 20)),
        Block("headless.0", (0, 0, 0, 0, 5), (0, 0, 0, 0, 5)),
    ]


def test_blocks_are_as_deep_as_fit_on_the_page() -> None:
    def deep(stages: int, blocks: int) -> list[LayerMacs]:
        names = [f"stage.{s}.block.{b}.fc" for s in range(stages) for b in range(blocks)]
        return [LayerMacs(name, 2, 1) for name in names]

    assert len(sum_blocks(deep(4, 10), {})) == 40 <= MOST_BLOCKS
    assert [block.name for block in sum_blocks(deep(4, 11), {})] == [
        f"stage.{stage}" for stage in range(4)
    ]


def test_a_model_without_products_has_no_blocks() -> None:
    assert sum_blocks([], {}) == []
