"""Text data: what a file says, in batches that depend on the step alone."""

from collections import Counter

import pytest
import torch

from dynprune.data.text import TextBatches, TextData, load_tokenizer, open_text
from dynprune.errors import InputError, UsageError


class Words:
    """A tokenizer: the length of every word, between a 1 and a 2."""

    pad_token_id = 0

    def __call__(self, sentences):
        return {"input_ids": [[1, *(2 + len(w) for w in s.split()), 2] for s in sentences]}


DATA = TextData(tuple((1, *[9 + i] * (i + 1), 2) for i in range(5)))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "val.txt").write_text("one two three\n\n  four five six seven \nshort\n", "utf-8")
    return tmp_path


def test_sentences_of_the_right_length_are_read(folder):
    data = open_text(folder, Words(), split="val", tokens=(5, 6))
    assert data.ids == ((1, 5, 5, 7, 2), (1, 6, 6, 5, 7, 2))
    assert len(open_text(folder, Words(), tokens=(3, 5))) == 2


def test_a_call_is_padded_to_its_longest_sentence():
    call = DATA.call([0, 2])
    assert call.kwargs["input_ids"].tolist() == [[1, 9, 2, 0, 0], [1, 11, 11, 11, 2]]
    assert call.kwargs["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert [c.batch for c in DATA.calls(2)] == [2, 2, 1]


def test_a_batch_depends_on_its_step_alone_and_an_epoch_sees_every_sentence_once():
    batches = TextBatches(DATA, 5, seed=3)
    first, labels = batches[0]
    again, _ = TextBatches(DATA, 5, seed=3)[0]
    assert labels is None
    assert torch.equal(first["input_ids"], again["input_ids"])
    for step in range(3):
        ids, _ = batches[step]
        assert Counter(ids["input_ids"][:, 1].tolist()) == Counter(range(9, 14))


def test_sentences_of_like_length_meet_and_none_is_left_out():
    data = TextData(tuple((1, *[9] * (1 + i % 7), 20 + i, 2) for i in range(60)))
    batches = TextBatches(data, 6, seed=1)
    epoch = [batches[step][0] for step in range(10)]
    seen = Counter(int(row[row >= 20]) for batch in epoch for row in batch["input_ids"])
    assert seen == Counter(range(20, 80))
    padding = sum(int((batch["attention_mask"] == 0).sum()) for batch in epoch)
    shuffled = [data.call(range(i, i + 6)).kwargs["attention_mask"] for i in range(0, 60, 6)]
    assert padding < sum(int((mask == 0).sum()) for mask in shuffled) / 4
    lengths = [batch["input_ids"].shape[1] for batch in epoch]
    assert lengths != sorted(lengths)


def test_other_sentences_have_another_fingerprint():
    assert DATA.fingerprint() == TextData(DATA.ids).fingerprint()
    assert DATA.fingerprint() != TextData(DATA.ids[::-1]).fingerprint()


def test_what_cannot_be_read_is_named(folder):
    with pytest.raises(InputError, match=r"train\.txt cannot be read.*a sentence a line"):
        open_text(folder, Words(), split="train")
    with pytest.raises(UsageError, match="split 'test'"):
        open_text(folder, Words(), split="test")
    with pytest.raises(InputError, match="3 sentences, none of 50 to 60 tokens"):
        open_text(folder, Words(), tokens=(50, 60))
    (folder / "val.txt").write_bytes(b"\xff\xfe caf\xe9")
    with pytest.raises(InputError, match="not UTF-8"):
        open_text(folder, Words())
    with pytest.raises(InputError, match="no tokenizer"):
        load_tokenizer(folder)
