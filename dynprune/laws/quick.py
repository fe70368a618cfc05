"""The laws that every gated model is held to before it is handed out: a few small runs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from dynprune.example import Example
from dynprune.gate.call import recording
from dynprune.gate.inject import gates
from dynprune.gate.probe import small_example
from dynprune.host.modes import at_inference
from dynprune.laws.batches import same_rows
from dynprune.laws.calls import rows_of, taken
from dynprune.laws.judge import judge
from dynprune.laws.subject import Case, Subject

__all__ = ["DenseNote", "broken_laws", "note_dense"]

ROWS = 2


@dataclass(frozen=True)
class DenseNote:
    """What a dense model does with a small call, noted before it is changed.

    Attributes:
        call: two instances; pictures are small.
        answer: the tensors that the dense model returns.
        rows: whether each row gets the answer that it gets alone, in any order.
    """

    call: Example
    answer: tuple[Tensor, ...]
    rows: bool


def note_dense(model: nn.Module, example: Example) -> DenseNote:
    """Run a dense model on a small call; it stays as it is.

    Args:
        model: dense.
        example: one call of it.
    """
    with at_inference(model):
        with torch.random.fork_rng(devices=[]):
            call = small_example(model, example)
        subject = Subject(model, model, (call,), Path(), rows=ROWS)
        verdict = judge("rows", _rows, subject)
        return DenseNote(call, tuple(subject.run(call)), verdict.status == "ok")


def broken_laws(model: nn.Module, note: DenseNote, *, whole: bool) -> list[str]:
    """Say which of the quick laws a gated model breaks; it stays as it is.

    Args:
        model: gated.
        note: of the dense model.
        whole: try whether nothing skipped is the dense model, too: not after a refit, which has
            changed weights, nor after training.
    """
    with at_inference(model):
        subject = Subject(model, _Noted(note.answer), (note.call,), Path(), rows=ROWS)
        laws: dict[str, Callable[[Subject], Iterator[Case]]] = {"compact equals masked": _compact}
        if whole:
            laws["nothing skipped equals dense"] = _whole
        if note.rows:
            laws["every row gets the answer that it gets alone"] = _rows
        verdicts = [judge(name, law, subject) for name, law in laws.items()]
        with torch.random.fork_rng(devices=[]), recording() as seen:
            subject.run(note.call)
    # A model that runs past its gates is the dense one, which breaks no other law.
    silent = [
        f"every gate takes part: that of {n} never ran" for n in gates(model) if n not in seen
    ]
    return silent + [
        f"{verdict.name}: {text}"
        for verdict in verdicts
        for text in (*verdict.broken, *verdict.refused)
    ]


class _Noted(nn.Module):
    """Answer the call that was noted, and no other."""

    def __init__(self, answer: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, *_args: object, **_kwargs: object) -> tuple[Tensor, ...]:
        return self.answer


def _whole(subject: Subject) -> Iterator[Case]:
    def found() -> list[Tensor]:
        with subject.skipping_nothing():
            return subject.run(subject.batch)

    wanted = partial(subject.run, subject.batch, subject.dense)
    yield Case("a small call", found, wanted, own=True)


def _compact(subject: Subject) -> Iterator[Case]:
    def masked() -> list[Tensor]:
        with subject.masked():
            return subject.run(subject.batch)

    yield Case("a small call", partial(subject.run, subject.batch), masked, own=True)


def _rows(subject: Subject) -> Iterator[Case]:
    whole = cache(partial(subject.run, subject.batch))
    forms = [(f"row {row + 1}", call, [row]) for row, call in enumerate(rows_of(subject.batch))]
    forms.append(("rows reversed", taken(subject.batch, [1, 0]), [1, 0]))
    for label, part, order in forms:
        yield replace(same_rows(label, subject, whole, part, order), own=True)
