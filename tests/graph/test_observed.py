"""A run is observed in every call of a layer, and leaves its arguments alone."""

import torch
from torch import Tensor, nn

from dynprune.example import Example
from dynprune.graph.observed import Shift, changes, observe, rows_of_output


class Twice(nn.Module):
    """A layer that is called by position and by keyword, behind an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer = nn.Embedding(9, 4), nn.Linear(4, 4)

    def forward(self, ids: Tensor, seen: list[Tensor]) -> Tensor:
        seen.append(ids)
        return self.layer(input=self.layer(self.embed(ids)))


def test_every_call_of_a_layer_counts_and_arguments_stay():
    model, seen = Twice(), []
    call = Example((torch.arange(5)[None], seen))
    found = observe(model, {"layer": model.layer}, call)
    assert len(found.inputs["layer"]) == 2
    assert [ids.tolist() for ids in found.looked_up] == [[[0, 1, 2, 3, 4]]]
    assert seen == []


def test_an_embedding_is_shifted_at_its_places_alone():
    model = Twice()
    call, layer = Example((torch.arange(5)[None], [])), {"layer": model.layer}
    before = observe(model, layer, call)
    after = observe(model, layer, call, Shift(0, torch.tensor([3])))
    found = changes(before, after)
    assert found.inputs["layer"][1].tolist() == [[False, False, False, True, False]]
    assert not changes(before, observe(model, layer, call))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_what_a_layer_reaches_is_found_by_disturbing_it():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    call, watched = Example((torch.randn(1, 3, 4),)), {"0": model[0], "2": model[2]}
    before = observe(model, watched, call)
    found = changes(before, observe(model, watched, call, disturbed=model[0]))
    assert not found.inputs["0"][0].any()
    assert found.inputs["2"][0].all()
    assert found.reach_all_outputs


def test_channels_of_a_convolution_are_its_second_axis():
    model = nn.Conv1d(4, 4, 1)
    before = observe(model, {"": model}, Example((torch.zeros(1, 4, 6),)))
    assert before.inputs[""][0].rows.shape[:-1] == (1, 6)


def test_an_output_keeps_an_axis_of_tokens_and_no_other():
    assert rows_of_output(torch.ones(1, 16, 99, dtype=torch.bool), 16).shape == (1, 16, 99)
    assert rows_of_output(torch.ones(1, 5, 99, dtype=torch.bool), 16).shape == (1, 5)
    assert rows_of_output(torch.ones(1, 3, 8, 8, dtype=torch.bool), 16).shape == (1, 8, 8)
    assert rows_of_output(torch.tensor(True), 16).shape == (1,)
