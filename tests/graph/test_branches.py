"""Code that looks at values: groups hold on every branch that can be found, or are refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynprune.example import Example
from dynprune.graph import find_groups
from tests.graph.adversaries import TwoLinears


def call() -> Example:
    torch.manual_seed(0)
    return Example((torch.randn(1, 6, 8).abs(),))


class Deciding(nn.Module):
    """A hidden layer whose neurons go one way or the other."""

    def __init__(self, decide, one, other) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(16, 8)
        self.decide, self.one, self.other = decide, one, other

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        return self.one(self, h) if self.decide(x) else self.other(self, h)


def plain(self: Deciding, h: Tensor) -> Tensor:
    return self.fc2(F.gelu(h))


def mixed(self: Deciding, h: Tensor) -> Tensor:
    return self.fc2(h.softmax(-1))


def elsewhere(self: Deciding, h: Tensor) -> Tensor:
    return self.fc3(F.gelu(h))


def otherwise(self: Deciding, h: Tensor) -> Tensor:
    return self.fc2(h.relu() * 2)


def failing(self: Deciding, h: Tensor) -> Tensor:
    raise ValueError("no such values, please")


DECISIONS = {
    "a boolean tensor": lambda x: x.mean() > 0,
    "a number": lambda x: x.mean().item() > 0.2,
    "a float": lambda x: float(x.abs().max()) < 100.0,
    "a count": lambda x: int((x > -1).sum()) % 2 == 0,
    "two tensors": lambda x: torch.equal(x, x),
}


@pytest.mark.parametrize("decide", DECISIONS.values(), ids=DECISIONS.keys())
def test_neurons_that_another_branch_mixes_are_refused_with_its_reason(decide):
    grouping = find_groups(Deciding(decide, plain, mixed).eval(), call())
    assert grouping.method == "make_fx"
    assert [group.reason for group in grouping.groups] == [
        "where its values take another branch: a softmax mixes its channels"
    ]


def test_it_does_not_matter_which_branch_the_example_takes():
    model = Deciding(DECISIONS["a boolean tensor"], mixed, plain).eval()
    (group,) = find_groups(model, call()).groups
    assert group.reason == "a softmax mixes its channels"


def test_neurons_that_another_layer_reads_on_another_branch_are_refused():
    model = Deciding(DECISIONS["a boolean tensor"], plain, elsewhere).eval()
    (group,) = find_groups(model, call()).groups
    assert group.reason == "where its values take another branch: its neurons are led elsewhere"


@pytest.mark.parametrize("other", [otherwise, failing])
def test_a_branch_that_leads_neurons_the_same_way_or_nowhere_costs_no_group(other):
    model = Deciding(DECISIONS["a boolean tensor"], plain, other).eval()
    grouping = find_groups(model, call())
    assert [group.name for group in grouping.candidates] == ["fc1"]


def test_every_layer_that_one_line_decides_for_is_looked_at():
    class Layer(TwoLinears):
        def forward(self, x: Tensor) -> Tensor:
            h = self.fc1(x)
            return x + self.fc2(h.softmax(-1) if x.sum() < -1e9 else F.gelu(h))

    model = nn.Sequential(*[Layer() for _ in range(3)]).eval()
    grouping = find_groups(model, call())
    said = {group.name: group.reason for group in grouping.groups}
    assert all("a softmax mixes" in said[f"{layer}.fc1"] for layer in range(3))


def test_a_loop_that_waits_for_another_answer_ends():
    class Halving(TwoLinears):
        def forward(self, x: Tensor) -> Tensor:
            while x.norm() > 1e9:
                x = x / 2
            return super().forward(x)

    grouping = find_groups(Halving().eval(), call())
    assert [group.name for group in grouping.candidates] == ["fc1"]


def test_more_branches_than_are_looked_at_are_said():
    lines = "\n".join(f"    if x.sum() < -{n}: x = x + {n}" for n in range(1, 11))
    space: dict = {}
    exec(f"def decide(x):\n{lines}\n    return True", space)
    model = Deciding(space["decide"], plain, otherwise).eval()
    assert "only the first 8" in find_groups(model, call()).notes[0]


def test_the_exporter_s_own_words_are_kept_from_the_user(capfd):
    find_groups(Deciding(DECISIONS["a boolean tensor"], plain, otherwise).eval(), call())
    assert capfd.readouterr() == ("", "")
