"""Feature vectors of any output, and their agreement position by position."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.tasks.vectors import feature_vectors, see_positions

TOKENS = torch.arange(24.0).view(2, 3, 4)
MAP = TOKENS.transpose(1, 2).reshape(2, 4, 1, 3)


@pytest.mark.parametrize(
    "output",
    [
        TOKENS,
        MAP,
        SimpleNamespace(last_hidden_state=TOKENS, pooler_output=torch.zeros(2, 9)),
        {"last_hidden_state": MAP},
        {"feature_maps": (torch.zeros(2, 8, 4, 4), MAP)},
        (torch.arange(6).view(2, 3), TOKENS),
    ],
    ids=["tokens", "map", "named", "mapping", "backbone", "whole numbers first"],
)
def test_features_are_found_as_one_vector_a_position(output):
    assert torch.equal(feature_vectors(output), TOKENS)


def test_one_vector_an_instance_is_one_position():
    assert feature_vectors(torch.zeros(2, 5)).shape == (2, 1, 5)


def test_an_output_without_features_is_refused():
    with pytest.raises(UsageError, match="no features"):
        feature_vectors({"ids": torch.zeros(2, 3, dtype=torch.long)})


def test_positions_are_compared_one_by_one():
    other = TOKENS.flip(-1)
    seen = see_positions(Example(), other, TOKENS)
    expected = [F.cosine_similarity(other[b], TOKENS[b], dim=-1).mean() for b in range(2)]
    torch.testing.assert_close(seen.cosines, torch.stack(expected))
    torch.testing.assert_close(seen.student.norm(dim=-1), torch.ones(2))
