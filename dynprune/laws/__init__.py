"""Laws that a pruned model is held to, each tried on the user's own model beside the dense one."""

from dynprune.laws.judge import Law, Status, Verdict, judge
from dynprune.laws.quick import DenseNote, broken_laws, note_dense
from dynprune.laws.subject import Case, NotTriedError, Subject
from dynprune.laws.table import EXPORT_LAWS, LAWS

__all__ = [
    "EXPORT_LAWS",
    "LAWS",
    "Case",
    "DenseNote",
    "Law",
    "NotTriedError",
    "Status",
    "Subject",
    "Verdict",
    "broken_laws",
    "judge",
    "note_dense",
]
