"""Files made to harm are refused."""

import pytest

from benchmarks.reliability.hostile import CASES, fault_of
from tests.reliability.conftest import in_this_process


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_it_is_refused_and_does_no_harm(world, tmp_path, case):
    assert fault_of(case, world, tmp_path / "work", run=in_this_process) is None
