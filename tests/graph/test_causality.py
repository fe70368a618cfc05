"""Which groups must not see the future is found by running the model."""

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor, nn

from dynprune.example import Example
from dynprune.graph import find_groups
from tests.zoo import ZOO


class Attention(nn.Module):
    """Token embeddings, one attention and one hidden layer."""

    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 8)
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)
        self.causal = causal

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        q, k, v = (layer(x)[:, None] for layer in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)[:, 0])
        return x + self.fc2(F.relu(self.fc1(F.layer_norm(x, (8,)))))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [2, 3, 16])
@pytest.mark.parametrize("fill", ["zeros", "ones", "random"])
def test_the_verdict_is_that_of_the_mask_for_any_example(causal, length, fill):
    torch.manual_seed(0)
    ids = {
        "zeros": torch.zeros(1, length, dtype=torch.long),
        "ones": torch.ones(1, length, dtype=torch.long),
        "random": torch.randint(2, 30, (1, length)),
    }[fill]
    grouping = find_groups(Attention(causal=causal), Example((ids,)))
    assert len(grouping.candidates) == 3
    assert all(group.causal == causal for group in grouping.candidates)


def test_padding_is_not_mistaken_for_a_causal_mask():
    model, example = ZOO["bert"].made()
    mask = torch.ones_like(example.kwargs["attention_mask"])
    mask[:, mask.shape[1] // 2 :] = 0
    padded = Example((), {**example.kwargs, "attention_mask": mask})
    assert not any(group.causal for group in find_groups(model, padded).groups)


def test_token_types_beyond_the_table_are_no_failure():
    config = hf.RobertaConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=64,
        max_position_embeddings=40,
        type_vocab_size=1,
    )
    ids = torch.randint(2, 60, (1, 12))
    call = Example((), {"input_ids": ids, "token_type_ids": torch.zeros_like(ids)})
    grouping = find_groups(hf.RobertaModel(config, add_pooling_layer=False), call)
    assert not any(group.causal for group in grouping.candidates)


def test_positions_that_are_counted_from_padding_are_no_causal_mask():
    """RoBERTa counts the tokens before each one that are not padding: no token may become that."""
    config = hf.XLMRobertaConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=16,
        max_position_embeddings=40,
        pad_token_id=0,
    )
    ids = torch.arange(12)[None] + 4  # up to the last word, after which comes the first
    model = hf.XLMRobertaModel(config, add_pooling_layer=False).eval()
    groups = find_groups(model, Example((), {"input_ids": ids})).candidates
    assert not any(group.causal for group in groups)
