"""Stage features, whichever way a model shows them."""

import copy

import pytest
import torch
from torch import nn

from dynprune.distill import Observer
from dynprune.errors import UsageError
from dynprune.tasks.embedding import text_embedding
from tests.distill import tiny
from tests.zoo import ZOO


@pytest.fixture(scope="module")
def dense():
    return tiny.teacher()


@pytest.fixture(scope="module")
def images():
    return tiny.batch(0)[0]


@torch.no_grad()
def test_a_folded_decoder_shows_the_hidden_states_of_the_unfolded_model(dense, images):
    folded = tiny.folded(copy.deepcopy(dense))
    by_fold = Observer(folded, {"encoder_stages"})(images).at("encoder_stages")
    by_request = Observer(dense, {"encoder_stages"})(images).at("encoder_stages")
    assert [x.shape for x in by_fold] == [x.shape for x in by_request]
    assert len(by_fold) == 4
    for ours, theirs in zip(by_fold, by_request, strict=True):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_features_alone_do_not_run_the_decoder_and_are_the_same(dense, images):
    folded = tiny.folded(copy.deepcopy(dense))
    ran = []
    folded.decode_head.register_forward_hook(lambda *_: ran.append(1))
    alone = Observer(folded, {"encoder_stages"})(images)
    assert alone.logits is None
    assert not ran
    both = Observer(folded, {"encoder_stages", "logits"})(images)
    assert ran
    torch.testing.assert_close(both.logits, dense(images).logits)
    for ours, theirs in zip(alone.at("encoder_stages"), both.at("encoder_stages"), strict=True):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_a_pattern_shows_the_outputs_of_the_modules_in_the_models_order(images):
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 4, 1))
    seen = Observer(model, {"re:[02]", "logits"})(images)
    first, last = seen.at("re:[02]")
    assert torch.equal(first, model[0](images))
    assert torch.equal(last, model(images))
    assert torch.equal(seen.at("logits")[0], last)


@torch.no_grad()
def test_a_model_keeps_no_hooks_even_when_it_fails(dense, images):
    folded = tiny.folded(copy.deepcopy(dense))
    folded(images)  # transformers puts in hooks of its own, once

    def hooks():
        return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in folded.modules()]

    before = hooks()
    observer = Observer(folded, {"encoder_stages", "re:segformer"})
    observer(images)
    assert hooks() == before
    with pytest.raises(RuntimeError):
        observer(torch.zeros(1, 5, 32, 32))
    assert hooks() == before


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("decoder", "'decoder': write one of 'embedding', 'encoder_stages'"),
        ("re:nothing", "no module of the model has such a name"),
        ("re:(", "not a regular expression"),
    ],
)
def test_a_place_that_is_none_is_refused(dense, place, text):
    with pytest.raises(UsageError, match=text):
        Observer(dense, {place})


def test_a_model_that_hides_its_stages_is_refused(images):
    with pytest.raises(UsageError, match="Conv2d does not show its encoder stages"):
        Observer(nn.Conv2d(3, 2, 1), {"encoder_stages"})(images)


@torch.no_grad()
def test_text_shows_zeros_where_it_is_padded_and_its_embedding():
    model, example = ZOO["distilbert"].made()
    call = dict(example.kwargs)
    seen = Observer(model, {"encoder_stages", "embedding", "re:.*ffn"})(call)
    whole = model(**call, output_hidden_states=True)
    real = call["attention_mask"].bool()
    assert not real.all()
    assert len(seen.at("encoder_stages")) == len(whole.hidden_states) == 3
    for found, wanted in zip(seen.at("encoder_stages"), whole.hidden_states, strict=True):
        assert torch.equal(found[real], wanted[real])
        assert not found[~real].any()
    assert not seen.at("re:.*ffn")[0][~real].any()
    (embedding,) = seen.at("embedding")
    assert torch.equal(embedding, text_embedding(whole, call["attention_mask"]))


@torch.no_grad()
def test_outputs_are_what_the_model_returns_and_group_outputs_what_consumers_do(dense, images):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.head = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 4, 1)

        def forward(self, x):
            x = self.read(x)
            return {"map": x, "classes": x.argmax(1), "logits": self.head(x)}

    model = Two()
    seen = Observer(model, {"outputs", "group_outputs"}, ["read"])(images)
    returned = model(images)
    first, second = seen.at("outputs")  # whole numbers are no features
    assert torch.equal(first, returned["map"])
    assert torch.equal(second, returned["logits"])
    (read,) = seen.at("group_outputs")
    assert torch.equal(read, returned["map"])
    with pytest.raises(UsageError, match="no layer of the model reads gated neurons"):
        Observer(dense, {"group_outputs"})
