"""Batches: every instance once, whoever shares the work, and the same from workers."""

import pytest
import torch

from dynprune.distill.batches import batches, micro_batches
from dynprune.errors import UsageError
from dynprune.example import Example


def source(step):
    first = 100 * step
    return torch.arange(first, first + 6), torch.arange(first, first + 6) + 1000


class Shares:
    """Makes shares; asking it for a whole batch is an error."""

    def __call__(self, step):
        raise AssertionError

    def share(self, step, rank, processes):
        images, labels = source(step)
        return images[rank::processes], labels[rank::processes]


@pytest.mark.parametrize("given", [source, Shares()])
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_each_batch_and_lose_nothing(given, processes):
    parts = [
        list(batches(given, range(2, 5), rank=r, processes=processes)) for r in range(processes)
    ]
    for position, step in enumerate(range(2, 5)):
        images = torch.cat([part[position][0] for part in parts])
        labels = torch.cat([part[position][1] for part in parts])
        assert torch.equal(images.sort().values, source(step)[0])
        assert torch.equal(labels, images + 1000)


def test_micro_batches_are_the_batch_in_order():
    parts = micro_batches(source(1), 3)
    assert [len(x) for x, _ in parts] == [2, 2, 2]
    assert torch.equal(torch.cat([x for x, _ in parts]), source(1)[0])
    assert torch.equal(torch.cat([y for _, y in parts]), source(1)[1])


def test_what_does_not_divide_is_refused():
    with pytest.raises(UsageError, match="batch of 6 does not divide by 4 processes"):
        next(batches(source, range(1), rank=0, processes=4))
    with pytest.raises(UsageError, match="batch of 6 on this process does not divide into 4"):
        micro_batches(source(0), 4)


def test_workers_give_the_same_batches_in_the_same_order():
    state = torch.get_rng_state()
    here = list(batches(source, range(3, 8)))
    there = list(batches(source, range(3, 8), workers=2))
    assert len(here) == len(there) == 5
    for ours, theirs in zip(here, there, strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
    assert torch.equal(torch.get_rng_state(), state)


def keywords(step):
    ids, labels = source(step)
    return {"input_ids": ids, "attention_mask": labels}, None


def test_keyword_batches_are_shared_and_split_like_pictures():
    (first,) = batches(keywords, range(1), rank=1, processes=2)
    ids, labels = source(0)
    assert first[1] is None
    assert torch.equal(first[0]["input_ids"], ids[1::2])
    parts = micro_batches(keywords(0), 3)
    assert all(y is None and len(x["input_ids"]) == 2 for x, y in parts)
    assert torch.equal(torch.cat([x["attention_mask"] for x, _ in parts]), labels)


def test_a_call_is_parted_with_its_labels_and_keeps_what_has_no_batch():
    values, scale = torch.arange(6).view(6, 1), torch.ones(3)
    call = Example((values,), {"scale": scale, "flag": True})
    parts = micro_batches((call, torch.arange(6) * 10), 3)
    assert [part.batch for part, _ in parts] == [2, 2, 2]
    for part, labels in parts:
        assert torch.equal(part.args[0][:, 0] * 10, labels)
        assert part.kwargs["scale"] is scale
        assert part.kwargs["flag"]
