"""What looks prunable and is not is refused, and says why."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.graph import Grouping, find_groups
from tests.graph.adversaries import REFUSED, TwoLinears
from tests.graph.surgery import close, mask, outputs, scramble


def example() -> Example:
    torch.manual_seed(0)
    return Example((torch.randn(1, 6, 8),))


def obeys_the_law(model: nn.Module, grouping: Grouping) -> bool:
    """Whether a skipped neuron of every candidate reaches nothing but its consumers."""
    for group in grouping.candidates:
        gone = torch.arange(group.neurons) % 2 == 0
        masked = copy.deepcopy(model).double()
        mask(masked, group, gone)
        expected = outputs(masked, example())
        scramble(masked, group, gone)
        if not close(outputs(masked, example()), expected):
            return False
    return True


@pytest.mark.parametrize("name", REFUSED)
def test_each_adversary_is_refused_with_its_reason(name):
    build, reason = REFUSED[name]
    model = build().eval()
    grouping = find_groups(model, example())
    said = [group.reason for group in grouping.groups if group.reason is not None]
    assert any(re.search(reason, text) for text in said), said
    assert obeys_the_law(model, grouping)


def only(model: nn.Module) -> tuple[nn.Module, Grouping]:
    """A model and its grouping, which must hold one candidate that obeys the law."""
    model = model.eval()
    grouping = find_groups(model, example())
    (group,) = grouping.groups
    assert group.reason is None
    assert obeys_the_law(model, grouping)
    return model, grouping


def test_operations_in_place_on_the_whole_hidden_tensor_change_nothing():
    def between(h: Tensor) -> Tensor:
        h.relu_()
        h += 1.0
        return h.mul_(0.5)

    _, grouping = only(TwoLinears(between))
    assert grouping.method == "export"


def test_a_branch_on_data_is_traced_from_one_run_and_said():
    class Branching(TwoLinears):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > -1e9:
                return super().forward(x)
            return x

    _, grouping = only(Branching())
    assert grouping.method == "make_fx"
    assert "only the branches" in grouping.notes[0]


def test_the_fallback_finds_the_same_groups_as_export():
    class Branching(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) if x.sum() > -1e9 else x

    from tests.plain_models import FusedViT

    torch.manual_seed(0)
    model = FusedViT().eval()
    call = Example((torch.randn(1, 3, 32, 32),))
    plain, branching = find_groups(model, call), find_groups(Branching(model), call)
    assert branching.method == "make_fx"
    assert [g.to_json() for g in branching.groups] == [_renamed(g.to_json()) for g in plain.groups]
    assert sum(c.macs for c in plain.costs) == sum(c.macs for c in branching.costs)


def _renamed(record: dict) -> dict:
    record["name"] = f"body.{record['name']}"
    for role in ("producers", "carriers", "consumers"):
        for channels in record[role]:
            channels["module"] = f"body.{channels['module']}"
    return record


def test_a_factor_a_channel_is_named_since_it_cannot_be_narrowed():
    class Scaled(TwoLinears):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(torch.randn(16))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(F.gelu(self.fc1(x)) * self.gamma)

    _, grouping = only(Scaled())
    assert grouping.groups[0].parameters == ("gamma",)


def test_attention_written_as_einsum_is_attention():
    class Einsum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (layer(x).unflatten(-1, (2, 4)) for layer in (self.q, self.k, self.v))
            weights = torch.einsum("bnhd,bmhd->bhnm", q, k).softmax(-1)
            return self.o(torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2))

    model = Einsum().eval()
    grouping = find_groups(model, example())
    assert [(g.name, g.kind, g.heads) for g in grouping.candidates] == [
        ("q", "qk", 2),
        ("v", "v", 2),
    ]
    assert obeys_the_law(model, grouping)


def test_two_layers_that_only_share_a_weight_are_two_groups():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = TwoLinears(), TwoLinears()
            self.b.fc1.weight = self.a.fc1.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))

    grouping = find_groups(Tied().eval(), example())
    assert [g.name for g in grouping.candidates] == ["a.fc1", "a.fc2", "b.fc1"]


def test_hidden_channels_beside_others_give_partial_columns():
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(24, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(torch.cat([x, F.gelu(self.fc1(x))], -1))

    _, grouping = only(Beside())
    (consumer,) = grouping.groups[0].consumers
    assert consumer.index.flatten().tolist() == list(range(8, 24))
    assert consumer.size == 24


def test_a_gate_from_the_pooled_neurons_belongs_to_its_group():
    class SqueezeExcite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)
            self.down, self.up = nn.Linear(16, 4), nn.Linear(4, 16)

        def forward(self, x: Tensor) -> Tensor:
            h = F.gelu(self.fc1(x))
            return self.fc2(h * self.up(F.relu(self.down(h.mean(1, keepdim=True)))).sigmoid())

    model = SqueezeExcite().eval()
    grouping = find_groups(model, example())
    groups = {group.name: group for group in grouping.candidates}
    assert [c.module for c in groups["fc1"].producers] == ["fc1", "up"]
    assert sorted(c.module for c in groups["fc1"].consumers) == ["down", "fc2"]
    assert groups["down"].neurons == 4
    assert obeys_the_law(model, grouping)


def test_a_model_that_fails_on_its_example_says_so():
    with pytest.raises(UsageError, match="the model fails on the example"):
        find_groups(nn.Linear(3, 4), example())
