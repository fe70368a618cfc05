"""Channels-last memory changes where numbers lie, not what they are."""

import copy

import pytest
import torch
from torch import nn

from dynprune.example import Example
from dynprune.rewrite import Rewrite, reapply, rewrite, undo
from dynprune.rewrite.memory import marked_by_strides
from tests.rewrite.heads import assert_close, image, output, segformer

BOTH = ["fold-decoder", "channels-last"]


def test_a_map_made_of_one_picture_of_tokens_is_marked_channels_last() -> None:
    tokens = torch.randn(1, 6, 4)
    x = tokens.transpose(1, 2).view(1, 4, 2, 3)
    marked = marked_by_strides(x)
    assert torch.equal(marked, x)
    assert marked.data_ptr() == tokens.data_ptr()
    assert marked.stride() == (24, 1, 12, 4)
    assert marked_by_strides(x.contiguous()).stride() == (24, 6, 3, 1)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_function_stays_and_convolutions_keep_the_layout(batch: int) -> None:
    model = segformer()
    expected = output(model, image(97, 131, batch=batch))
    layouts: list[bool] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
            module.register_forward_hook(
                lambda _, args, y: layouts.append(
                    y.stride(1) == 1 and (y.shape[0] == 1 or y.stride(0) > y.shape[1])
                )
            )
    records = rewrite(model, Example((image(batch=1),)), BOTH)
    assert [record.reason for record in records] == [None, None]
    layouts.clear()
    assert_close(output(model, image(97, 131, batch=batch)), expected)
    assert layouts
    assert all(layouts)


def test_undo_gives_bits_strides_and_hooks_back() -> None:
    model = segformer()
    before = {name: (p.clone(), p.stride()) for name, p in model.named_parameters()}
    rewrite(model, Example((image(),)), BOTH)
    undo(model)
    for name, parameter in model.named_parameters():
        value, stride = before[name]
        assert torch.equal(parameter, value)
        assert parameter.stride() == stride
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_both_rewrites_are_rebuilt_from_their_records() -> None:
    model = segformer()
    other = copy.deepcopy(model)
    records = rewrite(model, Example((image(),)), BOTH)
    reapply(other, [Rewrite.from_json(record.to_json()) for record in records])
    assert torch.equal(output(other, image(seed=2)), output(model, image(seed=2)))
    strides = {name: p.stride() for name, p in model.named_parameters()}
    assert {name: p.stride() for name, p in other.named_parameters()} == strides


def test_a_model_without_convolutions_is_refused() -> None:
    model = nn.Linear(3, 2)
    (record,) = rewrite(model, Example((torch.randn(1, 3),)), ["channels-last"])
    assert record.reason == "the model has no 2-d convolution"
