"""Damaged files: a clean exit and one message, every time. The full count is in docs."""

import pytest

from benchmarks.reliability.damage import damaged_files
from benchmarks.reliability.mutations import MUTATORS, mutations
from tests.reliability.conftest import in_this_process

COUNT = 25


@pytest.fixture(scope="module")
def sections(world, tmp_path_factory):
    work = tmp_path_factory.mktemp("damaged")
    return {s.name: s for s in damaged_files(world, work, COUNT, run=in_this_process, seed=1)}


@pytest.mark.parametrize("name", MUTATORS)
def test_a_damaged_file_ends_in_a_clean_exit_with_one_message(sections, name):
    section = sections[f"damaged {name}"]
    assert section.attempts == COUNT
    assert section.faults == []
    assert sum(n for end, n in section.outcomes.items() if end != "exit 0") > COUNT / 2


@pytest.mark.parametrize("name", MUTATORS)
def test_mutations_change_the_file_and_repeat_for_a_seed(world, name):
    original = (world.picture if name == "picture" else world.gated / name).read_bytes()
    made = list(mutations(name, original, 20))
    assert original not in made
    assert len(set(made)) > 15
    assert made == list(mutations(name, original, 20))
    assert made != list(mutations(name, original, 20, seed=1))
