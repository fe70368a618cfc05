"""Fingerprints: equal for equal things, and plain about what differs."""

import pytest
import torch
from torch import nn

from dynprune.distill import fingerprint
from dynprune.errors import UsageError


def test_structure_sees_shapes_and_types_and_not_weights():
    torch.manual_seed(0)
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    assert fingerprint.structure(first) == fingerprint.structure(second)
    assert fingerprint.structure(first) != fingerprint.structure(nn.Linear(2, 3))
    assert fingerprint.structure(first) != fingerprint.structure(first.double())
    one, other = nn.Sequential(nn.ReLU()), nn.Sequential(nn.GELU())
    assert fingerprint.structure(one) != fingerprint.structure(other)


def test_the_weights_digest_sees_one_bit():
    model = nn.BatchNorm2d(3)
    before = fingerprint.weights_digest(model)
    assert fingerprint.weights_digest(model) == before
    model.running_mean[1] += 1e-7
    assert fingerprint.weights_digest(model) != before


def test_tuples_and_lists_are_the_same_thing():
    facts = {"recipe": {"crop": (64, 64), "stages": [{"name": "a"}]}}
    fingerprint.check(fingerprint.canonical(facts), {"recipe": {**facts["recipe"]}}, "here")


def test_a_mismatch_names_each_key_with_both_values():
    saved = {"recipe": {"lr": 0.1, "stages": [{"steps": 5}]}, "seed": 0, "data": "old"}
    current = {"recipe": {"lr": 0.2, "stages": [{"steps": 5}, {"steps": 7}]}, "seed": 0}
    with pytest.raises(UsageError) as caught:
        fingerprint.check(saved, current, "checkpoint runs/a/step-4")
    text = str(caught.value)
    assert text.startswith("checkpoint runs/a/step-4 is of another run and cannot be resumed")
    assert "recipe.lr: 0.1 -> 0.2" in text
    assert "recipe.stages[1].steps: absent -> 7" in text
    assert "data: old -> absent" in text
    assert "seed" not in text


def test_many_differences_are_counted_and_long_values_cut():
    saved = {f"key{i}": "x" * 64 for i in range(10)}
    current = {f"key{i}": "y" * 64 for i in range(10)}
    with pytest.raises(UsageError, match="and 4 more") as caught:
        fingerprint.check(saved, current, "it")
    assert "x" * 13 not in str(caught.value)
