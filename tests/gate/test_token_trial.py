"""Whether a token can choose for itself is tried by running."""

import pytest
import torch
from torch import nn

from dynprune.example import Example
from dynprune.gate.token_trial import MIXED
from tests.gate.zoo_laws import gated_per_token
from tests.zoo import ZOO


class Mlp(nn.Module):
    """A hidden layer whose neurons pass through something on their way."""

    def __init__(self, between):
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 6)
        self.between = between

    def forward(self, x):
        return self.second(self.between(torch.relu(self.first(x))))


def test_a_depthwise_convolution_between_refuses_the_tokens_choice():
    _, record = gated_per_token(*ZOO["mmseg_segformer"].made())
    found = {p.reason for p in record.plans if p.group.kind == "ffn" and p.group.carriers}
    assert found == {MIXED}


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda y: y + y.roll(1, 1), MIXED),
        (lambda y: y * torch.softmax(y, 1), MIXED),
        (lambda y: y * 2.0, None),
    ],
)
def test_code_that_mixes_tokens_refuses_their_choice(between, reason):
    model, example = Mlp(between), Example((torch.randn(2, 5, 6),))
    _, record = gated_per_token(model.eval(), example)
    (plan,) = record.plans
    if plan.mode == "refused" and reason is not None:
        return
    assert plan.reason == reason
