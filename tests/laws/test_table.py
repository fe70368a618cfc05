"""Every law finds the one defect that it is for, and no other law takes it for its own."""

import pytest

from dynprune.laws import LAWS
from tests.laws import nets

#: defect -> the laws that it breaks.
DEFECTS = {
    nets.AloneWrong: {"rows alone", "other batch sizes", "padded rows"},
    nets.OrderWrong: {"rows shuffled"},
    nets.FiveWrong: {"other batch sizes"},
    nets.NoneWrong: {"empty batch"},
    nets.LongWrong: {"another size"},
    nets.TupleWrong: {"more outputs"},
    nets.PaddingWrong: {"padded rows"},
    nets.BoolMaskWrong: {"masks of other types"},
    nets.PlaceWrong: {"arguments by position", "padded rows"},
    nets.SharedWrong: {"threads"},
    nets.NestedWrong: {"a call inside a call"},
    nets.UntidyWrong: {"a call inside a call", "after an exception", "another size"},
    nets.PartWrong: {"parts alone"},
    nets.HookWrong: {"hooks"},
    nets.PairWrong: {"inside another model"},
    nets.LayoutWrong: {"memory layouts"},
    nets.WritesWrong: {"inputs untouched"},
    nets.GradWrong: {"gradient modes"},
    nets.DoubleWrong: {"double precision"},
    nets.HalfWrong: {"half precision"},
    nets.CastWrong: {"autocast"},
    nets.StaleWrong: {"changed weights", "functional calls"},
    nets.StateWrong: {"state dicts"},
}

#: What a small model without a cache, a file or a second build cannot show.
UNTRIED = {
    "experts equal plain layers",
    "later tokens",
    "token by token",
    "generate",
    "save and load",
    "restored equals built anew",
}


def test_a_sound_model_breaks_no_law_and_every_other_law_is_tried(subject, statuses):
    found = statuses(subject(nets.Net))
    assert {name for name, status in found.items() if status == "not tried"} == UNTRIED
    assert set(found.values()) == {"ok", "not tried"}


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda kind: kind.__name__)
def test_a_defect_is_found_by_its_law_and_by_no_other(defect, subject, statuses):
    found = statuses(subject(defect))
    assert {name for name, status in found.items() if status == "broken"} == DEFECTS[defect]


def test_every_law_says_what_it_states_in_a_sentence():
    for law in LAWS.values():
        assert (law.__doc__ or "").strip().endswith(".")
