"""Sequences of tokens are found in a call, and only their words are changed."""

import torch
from torch import nn

from dynprune.example import Example
from dynprune.graph.tokens import (
    Special,
    changed,
    cuts,
    ids_of,
    longer,
    sequences,
    special_ids,
    unmasked,
)

NOTHING = Special(frozenset(), frozenset())


def test_masks_caches_and_pairs_of_tokens_are_no_sequences():
    call = {
        "input_ids": torch.arange(6)[None],
        "attention_mask": torch.ones(1, 6, dtype=torch.long),
        "past_key_values": (torch.randn(1, 2, 5, 4),),
        "bias": torch.full((6, 6), float("-inf")).triu(1),
    }
    assert [tokens.name for tokens in sequences(Example((), call))] == ["input_ids"]


def test_a_mask_of_pairs_stays_and_one_of_padding_does_not():
    tril = torch.ones(4, 4, dtype=torch.long).tril()
    padding = torch.tensor([[1, 1, 0, 0]])
    found = unmasked(Example((torch.zeros(1, 4), padding, tril)))
    assert found.args[1].tolist() == [[1, 1, 1, 1]]
    assert torch.equal(found.args[2], tril)


def test_the_ids_of_a_model_of_pictures_and_text_stand_aside():
    ids = torch.tensor([[63, 63, 63, 63, 5, 6, 7, 8]])
    call = Example((), {"input_ids": ids})
    special = Special(frozenset(), frozenset({63}))
    tokens = sequences(call)[0]
    first, last = cuts(tokens, ids_of(call, tokens), special)[0]
    assert (first.tolist(), last.tolist()) == ([4, 5], [6, 7])
    other = changed(call, tokens, last, special)
    assert other is not None
    assert other.kwargs["input_ids"].tolist() == [[63, 63, 63, 63, 5, 6, 8, 5]]


def test_the_only_id_gets_a_neighbour_that_the_model_knows():
    call = Example((torch.full((1, 4), 98),))  # the last of 99 words
    tokens = sequences(call)[0]
    other = changed(call, tokens, torch.tensor([2, 3]), NOTHING)
    assert other is not None
    assert other.args[0].tolist() == [[98, 98, 97, 97]]


def test_special_ids_are_read_from_every_configuration():
    class Config:
        pad_token_id = None

        def __init__(self):
            self.pad_token_id, self.image_token_id, self.eos_token_id = 0, 7, None

    inner = nn.Linear(1, 1)
    inner.config = Config()
    assert special_ids(nn.Sequential(inner)) == Special(frozenset({0}), frozenset({7}))


def test_a_call_with_one_token_is_made_longer_and_its_words_differ():
    wide = longer(Example((torch.tensor([[9]]), torch.tensor([3]))))
    assert wide is not None
    assert wide.args[0].shape == (1, 8)
    assert len(wide.args[0].unique()) > 1
    assert wide.args[1].tolist() == [3]
    assert longer(Example((torch.arange(4)[None],))) is None
