"""Laws of sequences on causal models, on caches and on what is generated."""

import copy

import pytest
import torch
import transformers as hf

from dynprune.example import Example
from dynprune.laws import LAWS, Subject, judge
from tests.laws import nets
from tests.zoo import enliven


def test_a_causal_model_is_told_from_one_that_is_not(subject, statuses):
    causal = subject(nets.Net, causal=True)
    causal = Subject(nets.made(nets.Net, causal=True), causal.dense, causal.calls, causal.directory)
    assert statuses(causal, "later tokens") == {"later tokens": "ok"}
    assert statuses(subject(nets.Net), "later tokens") == {"later tokens": "not tried"}


def test_a_look_into_the_future_is_found(subject, statuses):
    looks = subject(nets.FutureWrong, causal=True)
    assert statuses(looks, "later tokens") == {"later tokens": "broken"}


def test_a_model_whose_tokens_never_meet_is_not_held_to_it(tmp_path):
    dense = torch.nn.Linear(6, 6)
    subject = Subject(dense, dense, (Example((torch.randn(3, 8, 6),)),), tmp_path)
    verdict = judge("later tokens", LAWS["later tokens"], subject)
    assert verdict.status == "not tried"
    assert "no token reaches another one" in verdict.detail


class Forgetful(hf.GPT2LMHeadModel):
    """Decodes another way token by token than all at once."""

    def forward(self, input_ids=None, **kwargs):
        found = super().forward(input_ids, **kwargs)
        if input_ids.shape[1] == 1:
            found.logits = found.logits.flip(-1)
        return found


class Repeating(hf.GPT2LMHeadModel):
    """Generates other tokens than its scores say."""

    def generate(self, *args, **kwargs):
        return super().generate(*args, **kwargs) * 0


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    config = hf.GPT2Config(
        n_embd=32,
        n_layer=1,
        n_head=4,
        vocab_size=64,
        n_positions=40,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = hf.GPT2LMHeadModel(config).eval()
    enliven(model)
    return model


@pytest.mark.filterwarnings("ignore")  # transformers warns of its own defaults, once
@pytest.mark.parametrize(
    ("kind", "broken"),
    [(None, set()), (Forgetful, {"token by token"}), (Repeating, {"generate"})],
)
def test_caches_and_generation_are_held_to_the_dense_model(decoder, kind, broken, tmp_path):
    model = copy.deepcopy(decoder)
    if kind is not None:
        model.__class__ = kind
    ids = torch.randint(3, 60, (3, 10), generator=torch.Generator().manual_seed(0))
    subject = Subject(model, decoder, (Example((), {"input_ids": ids}),), tmp_path)
    found = {n: judge(n, LAWS[n], subject) for n in ("token by token", "generate", "later tokens")}
    names = {name for name, verdict in found.items() if verdict.status == "broken"}
    assert broken <= names <= {*broken, "generate"}
    assert bool(names) == bool(broken)
    assert found["later tokens"].status == "ok"
