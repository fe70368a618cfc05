"""A text's embedding is that of its real tokens alone."""

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.tasks.embedding import agreement, embed, text_embedding
from tests.zoo import ZOO


def test_an_embedding_is_the_mean_of_the_real_tokens_at_unit_length():
    tokens = torch.randn(2, 5, 7, dtype=torch.float64)
    real = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    found = text_embedding(BaseModelOutput(last_hidden_state=tokens), real)
    for row, length in enumerate([3, 5]):
        mean = tokens[row, :length].sum(0) / length
        assert torch.allclose(found[row], mean / mean.square().sum().sqrt())
    assert torch.equal(text_embedding(tokens), text_embedding(tokens, torch.ones(2, 5)))


def test_padding_does_not_change_an_embedding():
    model, _ = ZOO["distilbert"].made()
    ids = torch.randint(2, 60, (1, 6))
    padded = torch.cat([ids, torch.zeros(1, 3, dtype=torch.long)], 1)
    calls = [
        Example((), {"input_ids": row, "attention_mask": (row > 0).long()}) for row in (ids, padded)
    ]
    alone, beside = embed(model, calls)
    assert torch.allclose(alone, beside, atol=1e-6)  # rounding of float32
    assert not model.training


def test_a_model_agrees_with_itself_and_not_with_its_opposite():
    embeddings = torch.nn.functional.normalize(torch.randn(20, 8), dim=-1)
    same = agreement(embeddings, embeddings)
    assert (same.texts, same.neighbours) == (20, 1.0)
    assert same.cosine == pytest.approx(1.0)
    turned = embeddings.clone()
    turned[3] *= -1
    other = agreement(turned, embeddings)
    assert other.cosine == pytest.approx(0.9)
    assert other.worst == pytest.approx(-1.0)
    assert other.neighbours < 1.0


def test_an_output_without_tokens_has_no_embedding():
    with pytest.raises(UsageError, match="no token vectors in the model's output of type Tensor"):
        text_embedding(torch.zeros(2, 3))
