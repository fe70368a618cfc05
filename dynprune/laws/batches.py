"""Laws of batches: no row of a batch has a part in the answer to another one."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial

import torch
from torch import Tensor

from dynprune.example import Example
from dynprune.laws.calls import repeated, rows_of, taken
from dynprune.laws.subject import Case, NotTriedError, Subject

__all__ = [
    "empty_batch",
    "other_batches",
    "rows_alone",
    "rows_of_outputs",
    "rows_shuffled",
    "same_rows",
]

SIZES = (1, 2, 5, 8)


def rows_alone(subject: Subject) -> Iterator[Case]:
    """Every row of a batch gets the answer that it gets alone."""
    whole = cache(partial(subject.run, subject.batch))
    for row, call in enumerate(rows_of(subject.batch)):
        yield same_rows(f"row {row + 1}", subject, whole, call, [row])


def rows_shuffled(subject: Subject) -> Iterator[Case]:
    """A batch in another order gets the same answers in that order."""
    rows = range(subject.batch.batch)
    whole = cache(partial(subject.run, subject.batch))
    for name, order in (("reversed", [*reversed(rows)]), ("turned", [*rows[1:], 0])):
        yield same_rows(name, subject, whole, taken(subject.batch, order), order)


def other_batches(subject: Subject) -> Iterator[Case]:
    """Rows get the same answers in batches of other sizes."""
    batch = subject.batch
    whole = cache(partial(subject.run, batch))
    for size in SIZES:
        order = [row % batch.batch for row in range(size)]
        yield same_rows(f"a batch of {size}", subject, whole, repeated(batch, size), order)


def empty_batch(subject: Subject) -> Iterator[Case]:
    """A batch of no rows gives an empty answer of the dense model's shape."""
    call = taken(subject.batch, [])
    yield Case("no rows", partial(subject.run, call), partial(subject.run, call, subject.dense))


def same_rows(
    label: str,
    subject: Subject,
    whole: Callable[[], list[Tensor]],
    call: Example,
    order: Sequence[int],
) -> Case:
    """Return the case that a call of these rows of the batch gives those rows' answers."""

    @cache
    def pairs() -> tuple[list[Tensor], list[Tensor]]:
        return rows_of_outputs(whole(), subject.batch.batch, subject.run(call), order)

    return Case(label, lambda: pairs()[1], lambda: pairs()[0])


def rows_of_outputs(
    whole: Sequence[Tensor], batch: int, part: Sequence[Tensor], order: Sequence[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the answers of these rows in a batch, and those of a call of these rows alone.

    Outputs that do not have the same rows for each input in both, such as a loss, are left out.

    Raises:
        NotTriedError: where no output is left.
    """
    rows, alone = [], []
    for one, other in zip(whole, part, strict=True):
        if not one.dim() or one.shape[0] % batch or other.shape[0] % len(order):
            continue
        each = one.shape[0] // batch
        if not each or other.shape[0] // len(order) != each or one.shape[1:] != other.shape[1:]:
            continue
        rows.append(torch.cat([one[row * each : (row + 1) * each] for row in order]))
        alone.append(other)
    if not rows:
        raise NotTriedError("no output has a row for every row of the input")
    return rows, alone
