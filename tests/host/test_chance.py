"""A seeded block draws the same numbers every time, and nobody outside of it draws others."""

import random

import numpy as np
import torch

from dynprune.host.chance import RandomState, seeded


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_a_state_that_is_put_back_lets_the_same_numbers_be_drawn():
    state = RandomState()
    first = draw()
    draw()
    state.put_back()
    assert draw() == first


def test_a_seeded_block_draws_as_after_the_seed_and_leaves_no_trace():
    state = RandomState()
    expected = draw()
    state.put_back()
    torch.manual_seed(5)
    wanted = torch.rand(3)
    state.put_back()
    with seeded(5):
        assert torch.equal(torch.rand(3), wanted)
        random.random()
    assert draw() == expected
