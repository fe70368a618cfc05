"""A trace sees the whole call and leaves the model as it was."""

import copy
import dataclasses
import time

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from dynprune.example import Example
from dynprune.graph import find_groups, trace
from tests.plain_models import FusedViT
from tests.zoo import ZOO


def image() -> Example:
    return Example((torch.randn(1, 3, 32, 32),))


def test_training_flags_weights_and_hooks_stay_as_they_were():
    model = FusedViT().train()
    model.blocks[0].eval()
    flags = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    find_groups(model, image())
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_failed_trace_leaves_the_model_as_it_was_too():
    model = FusedViT().train()
    with pytest.raises(ValueError, match="fails on the example"):
        trace(model, Example((torch.randn(1, 5, 32, 32),)))
    assert all(module.training for module in model.modules())
    assert all(not module._forward_hooks for module in model.modules())


def test_the_traced_call_has_two_instances_and_knows_the_batch_asked_for():
    found = trace(FusedViT(), image().batched(3))
    assert (found.instances, found.batch) == (2, 3)


def test_a_model_that_takes_one_batch_only_is_traced_at_that_batch():
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(self.fc1(x.reshape(1, 6, 8)).relu())

    model = One()
    assert trace(model, Example((torch.randn(1, 6, 8),))).instances == 1
    (group,) = find_groups(model, Example((torch.randn(1, 6, 8),))).candidates
    assert group.name == "fc1"


def test_every_operation_knows_its_module():
    found = trace(FusedViT(), image())
    scopes = {found.scopes[n] for n in found.graph.nodes if "linear" in n.name}
    assert "blocks.1.attn.qkv" in scopes


def test_a_model_in_bfloat16_has_the_same_groups():
    model, example = ZOO["vit"].made()
    expected = [group.to_json() for group in find_groups(model, example).groups]
    half = Example((), {"pixel_values": example.kwargs["pixel_values"].bfloat16()})
    assert [g.to_json() for g in find_groups(model.bfloat16(), half).groups] == expected


def test_groups_do_not_depend_on_how_attention_is_computed():
    model, example = ZOO["bert"].made()
    expected = [group.to_json() for group in find_groups(model, example).groups]
    model.set_attn_implementation("eager")
    assert [group.to_json() for group in find_groups(model, example).groups] == expected


def test_an_own_constant_is_no_parameter():
    class Shifted(FusedViT):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * torch.tensor([0.5, 0.2, 0.1]).view(3, 1, 1))

    assert len(find_groups(Shifted(), image()).candidates) == 6


@pytest.mark.slow
def test_segformer_b5_at_full_size_is_inspected_in_seconds():
    """Labels never grow with the picture: time and memory are those of the export."""
    config = hf.SegformerConfig(
        hidden_sizes=[64, 128, 320, 512],
        depths=[3, 6, 40, 3],
        decoder_hidden_size=768,
        num_labels=150,
    )
    with torch.device("meta"):
        model = hf.SegformerForSemanticSegmentation(config)
    model = model.to_empty(device="cpu").eval()
    start = time.process_time()
    grouping = find_groups(model, Example((torch.zeros(1, 3, 512, 512),)))
    assert len(grouping.candidates) == 3 * 52 + 5
    # 6 s on an idle core; the cores here are shared.
    assert time.process_time() - start < 45


class Cache:
    """What a model gives beside its output, in a class that no tracer knows."""

    def __init__(self, kept: Tensor) -> None:
        self.kept = kept


@dataclasses.dataclass
class Both:
    """An output in a class of the model's own."""

    output: Tensor
    hidden: Tensor | None


class Returning(nn.Module):
    """A hidden layer whose output comes in some container."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.up, self.down, self.what = nn.Linear(8, 32), nn.Linear(32, 8), what

    def forward(self, x: Tensor):
        hidden = torch.relu(self.up(x))
        y = self.down(hidden)
        return (y, Cache(y)) if self.what == "cache" else Both(y, hidden)


def test_a_model_that_returns_a_cache_is_exported_once_and_whole():
    model = Returning("cache")
    found = find_groups(model, Example((torch.randn(2, 8),)))
    assert found.method == "export"
    assert [(g.name, g.reason) for g in found.groups] == [("up", None)]
    assert "forward" not in vars(model)


def test_neurons_that_a_class_of_the_models_own_returns_are_outputs():
    found = find_groups(Returning("both"), Example((torch.randn(2, 8),)))
    (group,) = found.groups
    assert "returned as an output" in group.reason
