"""Count the multiply-adds of the published settings and compare them with the papers' figures.

Random weights do: counts depend on shapes alone. Writes docs/results/flops.md.

    python benchmarks/flops.py
"""

import json
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "flops.md"

#: recipe, input size, prune ratio, published dense and pruned counts in G MACs
SETTINGS = [
    ("segformer-b0", "512x512", 0.3, 8.4, 3.3),
    ("segformer-b0", "512x512", 0.5, 8.4, 2.7),
    ("segformer-b2", "512x512", 0.3, 62.4, 18.5),
    ("segformer-b2", "512x512", 0.5, 62.4, None),
    ("segformer-b0-cityscapes", "1024x2048", 0.3, 125.5, 62.7),
]

HEAD = """# Multiply-adds of the published settings

Made by `python benchmarks/flops.py`; each row is one command,
`dynprune report flops RECIPE --weights random --input-size HxW --set sparsity.final=R --json`.
G MACs (multiply-adds), batch 1, attention and the gates' own cost counted. *Dense* is the published
form; *rewritten* has the decoder folded, with no change of the function; *pruned* is the gated
model, by formula (analytic) and counted from the operations that ran (executed). The papers'
figures (SegFormer, arXiv 2105.15203; DynaSegFormer, arXiv 2111.09499) stand beside them.

| recipe | input | pruned share | dense | paper | rewritten | analytic | executed | paper | \
gates' and model's parameters, M (dense) |
|---|---|---|---|---|---|---|---|---|---|
"""


def count(recipe: str, size: str, ratio: float) -> dict:
    command = [str(Path(sys.executable).with_name("dynprune")), "report", "flops", recipe]
    command += ["--weights", "random", "--input-size", size, "--json"]
    command += ["--set", f"sparsity.final={ratio}"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    rows = []
    for recipe, size, ratio, dense, pruned in SETTINGS:
        found = count(recipe, size, ratio)
        giga = {key: found[key] / 1e9 for key in ("dense", "rewritten")}
        analytic = found["pruned"]["analytic"] / 1e9
        executed = found["pruned"]["executed"]["mean"] / 1e9
        params = found["params"]
        rows.append(
            f"| {recipe} | {size} | {ratio:.0%} | {giga['dense']:.2f} | {dense} | "
            f"{giga['rewritten']:.2f} | {analytic:.2f} | {executed:.2f} | {pruned or '-'} | "
            f"{params['pruned'] / 1e6:.2f} ({params['dense'] / 1e6:.2f}) |"
        )
        print(rows[-1], flush=True)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(HEAD + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
