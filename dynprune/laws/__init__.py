"""Laws that a pruned model is held to, each tried on the user's own model beside the dense one."""

from dynprune.laws.judge import Law, Status, Verdict, judge
from dynprune.laws.subject import Case, NotTriedError, Subject
from dynprune.laws.table import EXPORT_LAWS, LAWS, QUICK_LAWS

__all__ = [
    "EXPORT_LAWS",
    "LAWS",
    "QUICK_LAWS",
    "Case",
    "Law",
    "NotTriedError",
    "Status",
    "Subject",
    "Verdict",
    "judge",
]
