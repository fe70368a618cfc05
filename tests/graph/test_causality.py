"""Which groups must not see the future is found by running the model."""

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor, nn

from dynprune.example import Example
from dynprune.graph import find_groups
from tests.zoo import ZOO, enliven


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


class Block(nn.Module):
    """A hidden layer beside its input."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.relu(self.fc1(x)))


class Recurrent(nn.Module):
    """A recurrence, batch first or time first."""

    def __init__(self, kind: type[nn.RNNBase], *, both: bool = False, first: bool = True) -> None:
        super().__init__()
        self.rnn = kind(32, 16 if both else 32, batch_first=first, bidirectional=both)
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        if self.first:
            return self.rnn(x)[0]
        return self.rnn(x.transpose(0, 1))[0].transpose(0, 1)


class Loop(nn.Module):
    """A recurrence written as a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        state, states = x.new_zeros(len(x), 32), []
        for token in x.unbind(1):
            state = self.cell(token, state)
            states.append(state)
        return torch.stack(states, 1)


class Filter(nn.Module):
    """A convolution over tokens, padded at its left and right."""

    def __init__(self, left: int, right: int, *, size: int = 3, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(32, 32, size, dilation=dilation)
        self.padding = left, right

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x.transpose(1, 2), self.padding)).transpose(1, 2)


class RunningMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]


class RunningMaximum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cummax(1).values


class Stabilised(nn.Module):
    """Causal attention less the largest score of all, which moves every row by rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.transpose(1, 2)
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -1e4)
        return x + (scores - scores.max()).softmax(-1) @ v


class Mixed(nn.Module):
    """A hidden layer, something through which tokens may meet, and another hidden layer."""

    def __init__(self, mixer: nn.Module, *, of_ids: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(99, 32) if of_ids else nn.Identity()
        self.first, self.mixer, self.second = Block(), mixer, Block()
        self.head = nn.Linear(32, 99)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.mixer(self.first(self.embed(x)))))


ONE_WAY = {
    "gru": lambda: Recurrent(nn.GRU),
    "lstm": lambda: Recurrent(nn.LSTM),
    "time first": lambda: Recurrent(nn.GRU, first=False),
    "loop": Loop,
    "filter": lambda: Filter(2, 0),
    "narrow filter": lambda: Filter(1, 0, size=2),
    "dilated filter": lambda: Filter(8, 0, dilation=4),
    "running mean": RunningMean,
    "running maximum": RunningMaximum,
    "stabilised attention": Stabilised,
}
BOTH_WAYS = {
    "two recurrences": lambda: Recurrent(nn.GRU, both=True),
    "centred filter": lambda: Filter(1, 1),
}


def hidden_layers(model, *inputs):
    torch.manual_seed(0)
    found = find_groups(model.eval(), Example(inputs)).candidates
    return {group.name: group.causal for group in found if group.name.endswith("fc1")}


@pytest.mark.parametrize("length", [16, 17])
@pytest.mark.parametrize("of_ids", [True, False])
@pytest.mark.parametrize("name", [*ONE_WAY, *BOTH_WAYS])
def test_tokens_that_meet_one_way_are_causal_before_and_after(name, of_ids, length):
    model = Mixed({**ONE_WAY, **BOTH_WAYS}[name](), of_ids=of_ids)
    x = torch.randint(5, 99, (1, length)) if of_ids else torch.randn(1, length, 32)
    causal = name in ONE_WAY
    assert hidden_layers(model, x) == {"first.fc1": causal, "second.fc1": causal}


def test_tokens_that_never_meet_are_causal_in_a_model_of_ids_alone():
    ids, numbers = torch.randint(5, 99, (1, 16)), torch.randn(1, 16, 32)
    assert set(hidden_layers(Mixed(nn.Identity()), ids).values()) == {True}
    assert set(hidden_layers(Mixed(nn.Identity(), of_ids=False), numbers).values()) == {False}


def test_one_column_of_ids_is_no_sequence_unless_it_grows_into_one():
    column = torch.randint(5, 99, (4, 1))
    assert set(hidden_layers(Mixed(nn.Identity()), column).values()) == {False}
    assert set(hidden_layers(Mixed(Recurrent(nn.GRU)), column).values()) == {True}


def test_a_prefix_that_sees_itself_does_not_hide_what_follows_one_way():
    class Prefix(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen = torch.ones(16, 16).tril()
            seen[:, :12] = 1.0
            return seen @ x / 16

    assert set(hidden_layers(Mixed(Prefix()), torch.randint(5, 99, (1, 16))).values()) == {True}


def test_a_branch_of_its_own_does_not_hide_a_leak():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(99, 32)
            self.alone, self.second = Block(), Block()
            self.both = Recurrent(nn.GRU, both=True)

        def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
            x = self.embed(ids)
            return self.alone(x), self.second(self.both(x))

    found = hidden_layers(Branches(), torch.randint(5, 99, (1, 16)))
    assert found == {"alone.fc1": True, "second.fc1": False}


def test_a_model_that_answers_at_random_cannot_be_tried():
    class Chance(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.state = 0.0

        def forward(self, x: Tensor) -> Tensor:
            self.state += 1.0
            return x + self.state

    groups = find_groups(Mixed(Chance()).eval(), Example((torch.randint(5, 99, (1, 16)),))).groups
    first = next(group for group in groups if group.name == "first.fc1")
    assert first.causal or "twice alike" in (first.reason or "")


def test_ids_that_no_other_may_stand_for_are_tried_behind_their_embedding():
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Mixed(Recurrent(nn.GRU))

        def forward(self, ids: Tensor) -> Tensor:
            if not torch.equal(ids, torch.arange(5, 21)[None].expand_as(ids) * 3 % 64 + 5):
                raise ValueError("these are not the ids that this model was made for")
            return self.model(ids)

    ids = torch.arange(5, 21)[None] * 3 % 64 + 5
    assert set(hidden_layers(Picky(), ids).values()) == {True}


def test_what_cannot_be_changed_is_refused_with_the_reason():
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.block = nn.Parameter(torch.randn(99, 32)), Block()

        def forward(self, ids: Tensor) -> Tensor:
            if ids.flatten()[:3].tolist() != [4, 1, 9] or int(ids.sum()) % 99 != 43:
                raise ValueError("a checksum is wrong")
            return self.block(self.table[ids])

    ids = torch.tensor([[4, 1, 9, 8, 7, 6, 5, 3]])
    groups = find_groups(Fixed().eval(), Example((ids,))).groups
    said = next(group.reason for group in groups if group.name == "block.fc1")
    assert "cannot be tried: input 0 cannot be changed: ValueError" in said or "checksum" in said


TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 64,
}
SHORT = {
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}


def candidates(model, **inputs):
    torch.manual_seed(0)
    enliven(model.eval())
    return find_groups(model, Example((), inputs)).candidates


@pytest.mark.parametrize("cached", [True, False])
def test_a_cache_does_not_hide_a_causal_model(cached):
    config = hf.Qwen2Config(**TINY, num_key_value_heads=2, use_cache=cached)
    found = candidates(hf.Qwen2ForCausalLM(config), input_ids=torch.randint(5, 60, (1, 16)))
    assert found
    assert all(group.causal for group in found)


def test_a_cache_that_is_given_is_not_written_into():
    model = hf.Qwen2ForCausalLM(hf.Qwen2Config(**TINY, num_key_value_heads=2))
    with torch.no_grad():
        cache = model.eval()(torch.randint(5, 60, (1, 4))).past_key_values
    ids = torch.randint(5, 60, (1, 6))
    found = candidates(model, input_ids=ids, past_key_values=cache)
    assert cache.get_seq_length() == 4
    assert all(group.causal for group in found)


def test_the_decoder_is_causal_where_its_ids_are_made_of_those_of_the_encoder():
    config = hf.BartConfig(**SHORT)
    model = hf.BartForConditionalGeneration(config)
    for group in candidates(model, input_ids=torch.randint(5, 60, (1, 16))):
        inside = group.name.startswith("model.decoder")
        assert group.causal == (inside and "encoder_attn.v" not in group.name), group.name


def test_text_beside_pictures_is_causal_and_the_pictures_are_not():
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(
            **{key: value for key, value in TINY.items() if key != "vocab_size"},
            image_size=32,
            patch_size=16,
        ),
        text_config=hf.LlamaConfig(**TINY),
        image_token_id=63,
    )
    ids = torch.cat([torch.full((1, 4), 63), torch.randint(5, 60, (1, 9))], 1)
    model = hf.LlavaForConditionalGeneration(config)
    found = candidates(model, input_ids=ids, pixel_values=torch.randn(1, 3, 32, 32))
    assert {group.causal for group in found} == {True, False}
    for group in found:
        assert group.causal == group.name.startswith("model.language_model"), group.name


@pytest.mark.parametrize("length", [16, 128])
def test_weak_attention_of_a_fresh_encoder_is_seen(length):
    model = hf.BertModel(hf.BertConfig(**TINY)).eval()
    call = {
        "input_ids": torch.randint(5, 60, (1, length)),
        "token_type_ids": torch.zeros(1, length, dtype=torch.long),
        "output_hidden_states": True,
    }
    found = find_groups(model, Example((), call)).candidates
    assert len(found) >= 6
    assert not any(group.causal for group in found)
