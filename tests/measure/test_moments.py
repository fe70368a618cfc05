"""What the gates measure: the neurons of real tokens alone."""

import pytest
import torch

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.measure.moments import measure
from dynprune.planning.calibrate import calibrate
from tests.gate.zoo_laws import gated_animal


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_padding_changes_nothing_that_is_measured(name):
    model, *_ = gated_animal(name)
    ids = torch.randint(2, 60, (2, 7), generator=torch.Generator().manual_seed(1))
    ids[1, 4:] = 0
    together = Example((), {"input_ids": ids, "attention_mask": (ids > 0).long()})
    alone = [
        Example((), {"input_ids": row[None], "attention_mask": torch.ones_like(row[None])})
        for row in (ids[0], ids[1, :4])
    ]
    padded, bare = measure(model, [together]), measure(model, alone)
    assert padded.keys() == bare.keys()
    for group, found in padded.items():
        for field in ("first", "second", "queries", "summaries"):
            ours, wanted = getattr(found, field), getattr(bare[group], field)
            if wanted is None:
                assert ours is None
            else:  # rounding of float32 in another order
                torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)


def test_every_input_has_moments_of_its_own_that_a_distribution_can_have():
    model, example, *_ = gated_animal("mlp_mixer")
    call = example.batched(3, seed=5)
    moments = measure(model, [call])
    assert all(len(m.first) == len(m.second) == len(m.summaries) == 3 for m in moments.values())
    for m in moments.values():
        assert (m.second >= m.first.square() - 1e-5).all()  # a variance is not negative
        assert m.queries is None


def test_calibration_without_an_input_is_refused():
    model, *_ = gated_animal("mlp_mixer")
    with pytest.raises(UsageError, match="at least one input"):
        calibrate(model, [])
