"""Time the folded decoder whole and in bands of rows.

python benchmarks/decoder.py segformer-b2 --input-size 512 512
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch

from dynprune.measure.latency import interleaved
from dynprune.models import load_model
from dynprune.pipeline.arguments import model_arguments
from dynprune.recipe import load_recipe
from dynprune.rewrite import FoldedDecoder, rewrite
from dynprune.rewrite.decoder import row_tiles


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("--input-size", type=int, nargs=2, default=(512, 512))
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape = f"model.input={[1, 3, *options.input_size]}"
    arguments = model_arguments(load_recipe(options.recipe, [shape]))
    loaded = load_model(None, weights="random", **arguments)
    rewrite(loaded.module, loaded.example, ["fold-decoder", "channels-last"])
    (decoder,) = [m for m in loaded.module.modules() if isinstance(m, FoldedDecoder)]
    calls: list[tuple[Any, ...]] = []
    handle = decoder.register_forward_pre_hook(lambda _, args: calls.append(args))
    with torch.inference_mode():
        loaded.example.run(loaded.module)
        handle.remove()

        def at(elements: int) -> Callable[[], None]:
            def run() -> None:
                row_tiles.BAND = elements
                decoder(*calls[0])

            return run

        forms = {
            "one band": at(1 << 62),
            "bands": at(row_tiles.BAND),
            "bands, twice": at(2 * row_tiles.BAND),
        }
        times = interleaved(forms, repeats=options.runs)
    for name, found in times.items():
        print(f"{name:15s} {statistics.median(found):8.1f} ms")


if __name__ == "__main__":
    main()
