"""Driving all gates of a model at once."""

import pytest

from dynprune.gate import gates, set_execution, set_prune_ratio, set_sparsity_progress
from tests.gate.zoo_laws import gated_animal


@pytest.fixture(scope="module")
def model():
    return gated_animal("vit", prune_ratio=0.5)[0]


def test_a_ratio_holds_for_every_gate(model):
    set_prune_ratio(model, 0.25)
    assert {gate.keep_ratio for gate in gates(model).values()} == {0.75}


@pytest.mark.parametrize(("progress", "kept"), [(0.0, 1.0), (0.5, 0.75), (1.0, 0.5), (7.0, 0.5)])
def test_progress_is_a_fraction_of_the_final_ratio_and_never_beyond_it(model, progress, kept):
    set_sparsity_progress(model, progress)
    assert {gate.keep_ratio for gate in gates(model).values()} == {kept}
    assert {gate.final_ratio for gate in gates(model).values()} == {0.5}


def test_masked_execution_is_on_request_and_widens_the_heads(model):
    set_sparsity_progress(model, 1.0)
    hosts = {w.module: w for g in gates(model).values() for w in g.widths if w.per_head}
    assert hosts

    def widths():
        return {getattr(host, w.attribute) / w.dense for host, w in hosts.items()}

    set_execution(model, "masked")
    assert {gate.running for gate in gates(model).values()} == {"masked"}
    assert widths() == {1.0}
    set_execution(model, "compact")
    assert {gate.running for gate in gates(model).values()} == {"compact"}
    assert widths() == {0.5}
