"""What each row is: a built-in recipe with some of its keys overridden, and nothing else."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["DATASETS", "ROWS", "Row", "find_row"]

Kind = Literal["teacher", "dense", "untrained", "gated", "magnitude", "taylor", "cut"]

DATASETS = ("camvid", "diverse")


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: what the command and the table call it.
        kind: how the student is made: the ``teacher`` itself, a ``dense`` copy that is fine-tuned,
            gates without training (``untrained``) or with it (``gated``), or torch-pruning's
            static pruning by ``magnitude`` or first-order ``taylor`` importance; ``cut`` is by
            magnitude without training.
        about: the row in a few words.
        overrides: changes to the data set's recipe, as ``--set`` takes them.
        datasets: that have the row.
        seeds: that are run.
    """

    name: str
    kind: Kind
    about: str
    overrides: tuple[str, ...] = ()
    datasets: tuple[str, ...] = DATASETS
    seeds: tuple[int, ...] = (0,)

    def recipe(self, dataset: str) -> str:
        """Name the built-in recipe of a data set."""
        return f"segformer-b0-{dataset}"


CAMVID, DIVERSE = ("camvid",), ("diverse",)
BOLD = (0, 1, 2)
LABELS = "[{type: ce, weight: 1.0}]"
SUMMED = (
    "[{type: normalized_mse, on: encoder_stages, weight: 1.0}, "
    "{type: ce, weight: 1.0}, {type: soft_ce, weight: 1.0}]"
)


def _final(percent: int) -> str:
    return f"sparsity.final={percent / 100}"


def _pruned(
    stem: str, kind: Kind, about: str, percents: tuple[int, ...], *overrides: str, **more: object
) -> list[Row]:
    return [
        Row(f"{stem}-{p}", kind, f"{p} %, {about}", (_final(p), *overrides), **more)  # type: ignore[arg-type]
        for p in percents
    ]


_FIXED = "apply.gate.order=fixed"
_PLAIN = "apply.calibration.refit=false"
_ZERO, _MEAN = "apply.gate.compensation=zero", "apply.gate.compensation=mean"
_ANNEALED = "sparsity.schedule={type: linear, end_step: 30}"
_FRESH = ("apply.gate.start=fresh", _ZERO)

ROWS: tuple[Row, ...] = (
    Row("teacher", "teacher", "dense teacher"),
    Row(
        "control",
        "dense",
        "dense, fine-tuned with the same budget",
        (f"stages=[{{name: labels, steps: STEPS, losses: {LABELS}}}]", "penalties=[]"),
        seeds=BOLD,
    ),
    *_pruned("untrained", "untrained", "calibrated and refitted, no training", (30, 50, 70, 80)),
    *_pruned("untrained-fixed", "untrained", "the same with the fixed order", (50, 70, 80), _FIXED),
    *_pruned("untrained-plain", "untrained", "no training, no refit", (30, 50, 70), _PLAIN),
    *_pruned(
        "untrained-plain-fixed",
        "untrained",
        "fixed order, no training, no refit",
        (50, 70),
        _PLAIN,
        _FIXED,
    ),
    *_pruned(
        "untrained-plain-zero",
        "untrained",
        "no training, no refit, skipped at zero",
        (50, 70),
        _PLAIN,
        _ZERO,
        datasets=CAMVID,
    ),
    *_pruned(
        "untrained-plain-mean",
        "untrained",
        "no training, no refit, skipped at the mean",
        (50, 70),
        _PLAIN,
        _MEAN,
        datasets=DIVERSE,
    ),
    *_pruned(
        "untrained-fresh",
        "untrained",
        "the published start: random predictor, skipped at zero",
        (50,),
        *_FRESH,
        datasets=CAMVID,
    ),
    *_pruned(
        "untrained-dropped",
        "untrained",
        "type III neurons removed first, no training",
        (30, 50),
        "apply.drop_dead=true",
        datasets=CAMVID,
    ),
    *_pruned(
        "untrained-random",
        "untrained",
        "random fixed set, refitted",
        (50,),
        "apply.gate.order=random",
        datasets=CAMVID,
    ),
    *_pruned(
        "untrained-prefix",
        "untrained",
        "first neurons, refitted",
        (50,),
        "apply.gate.order=prefix",
        datasets=CAMVID,
    ),
    *_pruned(
        "untrained-spread",
        "untrained",
        "refitted, shares spread by sensitivity, no training",
        (50, 70),
        "sparsity.distribution=sensitivity",
    ),
    *_pruned("distilled", "gated", "distilled", (30, 80), datasets=CAMVID),
    *_pruned("distilled", "gated", "distilled", (50, 70), seeds=BOLD),
    *_pruned("fixed", "gated", "fixed informed order, distilled", (50,), _FIXED),
    *_pruned("fixed", "gated", "fixed informed order, distilled", (70,), _FIXED, seeds=BOLD),
    *_pruned(
        "random", "gated", "random fixed set", (50,), "apply.gate.order=random", datasets=CAMVID
    ),
    *_pruned("prefix", "gated", "first neurons", (50,), "apply.gate.order=prefix", datasets=CAMVID),
    *_pruned(
        "with-labels",
        "gated",
        "labels and the teacher's logits, half the learning rate",
        (50, 70),
        "stages.1.losses=[{type: ce, weight: 1.0}, {type: soft_ce, weight: 1.0}]",
        "optimizer.lr=5.0e-5",
        datasets=CAMVID,
    ),
    *_pruned(
        "no-distillation",
        "gated",
        "labels alone",
        (50,),
        f"stages=[{{name: labels, steps: STEPS, losses: {LABELS}}}]",
        datasets=CAMVID,
    ),
    *_pruned(
        "one-stage",
        "gated",
        "all losses summed, one stage",
        (50,),
        f"stages=[{{name: all, steps: STEPS, losses: {SUMMED}}}]",
        datasets=CAMVID,
    ),
    *_pruned("plain", "gated", "distilled, no refit, not annealed", (50,), _PLAIN, datasets=CAMVID),
    *_pruned(
        "annealed",
        "gated",
        "distilled, no refit, annealed",
        (50,),
        _PLAIN,
        _ANNEALED,
        datasets=CAMVID,
    ),
    *_pruned(
        "zero",
        "gated",
        "the same, skipped neurons at zero",
        (50,),
        _PLAIN,
        _ANNEALED,
        _ZERO,
        datasets=CAMVID,
    ),
    *_pruned(
        "fresh",
        "gated",
        "the published start: random predictor, zero",
        (50,),
        _ANNEALED,
        *_FRESH,
        datasets=CAMVID,
    ),
    *_pruned("cut", "cut", "static, L2 magnitude, no training", (50, 70), datasets=CAMVID),
    *_pruned("magnitude", "magnitude", "static, L2 magnitude", (50, 70), datasets=CAMVID),
    *_pruned("taylor", "taylor", "static, first-order", (50,), datasets=CAMVID),
)


def find_row(name: str, dataset: str) -> Row | None:
    """Return the row of a data set by its name; None where there is none."""
    return next((r for r in ROWS if r.name == name and dataset in r.datasets), None)
