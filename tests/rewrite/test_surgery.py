"""Folded decoders compute their source's function, and nothing else is folded."""

import copy
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.rewrite import (
    REWRITES,
    FoldedDecoder,
    Rewrite,
    RewriteKind,
    reapply,
    rewrite,
    undo,
)
from dynprune.rewrite.decoder import folded as folded_module
from dynprune.rewrite.decoder import row_tiles as row_tiles_module
from dynprune.rewrite.decoder.folded import pointwise_as
from dynprune.rewrite.decoder.row_tiles import row_tiles_of_sum
from dynprune.rewrite.made import note_undo
from tests.rewrite.heads import assert_close, image, output, segformer

from .heads import ConvHead, LinearHead, Model, stirred

FOLD = ["fold-decoder"]


HEADS = {
    "conv": lambda: ConvHead(),
    "conv, fuse with bias": lambda: ConvHead(fuse_bias=True),
    "conv, no bias at all": lambda: ConvHead(projection_bias=False),
    "conv, widths that differ": lambda: ConvHead(widths=(20, 16, 24)),
    "conv, aligned corners": lambda: ConvHead(align_corners=True),
    "conv, nearest": lambda: ConvHead(mode="nearest", align_corners=None),
    "conv, bicubic antialiased": lambda: ConvHead(mode="bicubic", antialias=True),
    "linear, keyword maps": lambda: LinearHead(),
}


def model_with(head: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    return stirred(Model(head))


@pytest.fixture(params=[*HEADS, "segformer"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(2)
    if request.param == "segformer":
        return segformer()
    return model_with(HEADS[request.param]())


def only_folded(model: nn.Module) -> FoldedDecoder:
    (folded,) = [m for m in model.modules() if isinstance(m, FoldedDecoder)]
    return folded


@pytest.mark.parametrize("size", [(64, 64), (97, 131), (90, 61)])
def test_the_folded_model_computes_the_same_function(
    model: nn.Module, size: tuple[int, int]
) -> None:
    dense = copy.deepcopy(model)
    (record,) = rewrite(model, Example((image(),)), FOLD)
    assert record.reason is None
    assert record.max_error is not None
    assert record.max_error <= 1e-5
    x = image(*size, seed=1)
    assert_close(output(model, x), output(dense, x))


def test_the_folded_model_trains_as_its_source_does(model: nn.Module) -> None:
    rewrite(model, Example((image(),)), FOLD)
    dense = undo(copy.deepcopy(model))
    for module in (*model.modules(), *dense.modules()):
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    folded = only_folded(model)
    source = dense.get_submodule("decode_head" if hasattr(model, "decode_head") else "head")
    model.train(), dense.train()
    logits = {}
    for network in (model, dense):
        torch.manual_seed(0)  # stochastic depth draws the same in both
        result = network(image(seed=3))
        logits[network] = result if isinstance(result, Tensor) else result.logits
        logits[network].square().mean().backward()
    assert_close(logits[model], logits[dense])
    for weight in folded.weights:
        assert weight.grad is not None
        assert weight.grad.abs().max() > 0
    buffers = dict(folded.source.named_buffers())
    for name, buffer in source.named_buffers():
        assert_close(buffers[name].float(), buffer.float())
    shared = dict(folded.source.named_parameters())
    frozen = {p for m in folded.frozen_modules() for p in m.parameters()}
    for name, parameter in source.named_parameters():
        if shared[name] in frozen:
            assert shared[name].grad is None
        else:
            assert parameter.grad is not None
            torch.testing.assert_close(shared[name].grad, parameter.grad, rtol=1e-3, atol=1e-6)


def test_undo_gives_the_dense_bits_back(model: nn.Module) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    rewrite(model, Example((image(),)), FOLD)
    undo(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trainable


def test_undo_keeps_a_trained_function(model: nn.Module) -> None:
    rewrite(model, Example((image(),)), FOLD)
    folded = only_folded(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in folded.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    x = image(97, 131, seed=1)
    expected = output(model, x)
    undo(model)
    assert not [m for m in model.modules() if isinstance(m, FoldedDecoder)]
    assert_close(output(model, x), expected)


def test_records_rebuild_the_folded_model_without_tracing(model: nn.Module) -> None:
    other = copy.deepcopy(model)
    records = rewrite(model, Example((image(),)), FOLD)
    text = json.dumps([record.to_json() for record in records])
    again = [Rewrite.from_json(record) for record in json.loads(text)]
    assert again == records
    for parameter in other.parameters():
        parameter.data.zero_()
    reapply(other, again)
    assert list(other.state_dict()) == list(model.state_dict())
    other.load_state_dict(model.state_dict())
    x = image(seed=1)
    assert torch.equal(output(other, x), output(model, x))


def test_a_trained_bias_without_a_spare_channel_moves_into_the_norm() -> None:
    torch.manual_seed(3)
    model = model_with(ConvHead(width=8, widths=(8, 8, 8)))
    rewrite(model, Example((image(),)), FOLD)
    with torch.no_grad():
        only_folded(model).bias += 1.0  # type: ignore[operator]
        only_folded(model).weights[0] *= 2.0
    expected = output(model, image(seed=1))
    undo(model)
    assert_close(output(model, image(seed=1)), expected)


class TwiceUsed(ConvHead):
    def forward(self, inputs: list[Tensor]) -> Tensor:
        outs = [
            F.interpolate(c(x), inputs[0].shape[2:])
            for c, x in zip(self.convs, inputs, strict=True)
        ]
        return super().forward(inputs) + outs[0].mean()


class SharedBranch(ConvHead):
    def forward(self, inputs: list[Tensor]) -> Tensor:
        outs = [
            F.interpolate(c(x), inputs[0].shape[2:])
            for c, x in zip(self.convs, inputs, strict=True)
        ]
        y = self.fusion_conv(torch.cat(outs, 1))
        return self.conv_seg(y) + outs[2].mean()


class Cropped(ConvHead):
    """Shifts one map by a pixel, which is movement and yet no fold."""

    def forward(self, inputs: list[Tensor]) -> Tensor:
        maps = [inputs[0].transpose(2, 3).reshape(inputs[0].shape), *inputs[1:]]
        return super().forward(maps)


REFUSED = {
    "kernel of 3": (ConvHead(kernel=3), "3x3 convolution"),
    "LayerNorm between": (ConvHead(between=nn.LayerNorm(20)), "layer_norm .* stands between"),
    "activation between": (ConvHead(between=nn.ReLU()), "relu .* stands between"),
    "projection run twice": (TwiceUsed(), "(runs|used) more than once"),
    "branch used twice": (SharedBranch(), "used more than once"),
    "bottleneck": (ConvHead(widths=(4, 20, 20)), "bottleneck of 4"),
    "pixels moved": (Cropped(), "differs by"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_head_that_a_fold_would_change_is_left_alone(case: str) -> None:
    head, reason = REFUSED[case]
    model = model_with(head)
    before = output(model, image())
    (record,) = rewrite(model, Example((image(),)), FOLD)
    assert record.reason is not None
    assert re.search(reason, record.reason), record.reason
    assert model.head is head
    assert torch.equal(output(model, image()), before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_without_a_fusing_head_is_refused_with_a_reason() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    (record,) = rewrite(model, Example((image(),)), FOLD)
    assert record.reason is not None
    assert "no module" in record.reason
    assert reapply(model, [record]) is model


def test_an_unknown_rewrite_is_named_before_anything_changes() -> None:
    model = segformer()
    with pytest.raises(UsageError, match="no rewrite is called 'fold-decoders'"):
        rewrite(model, Example((image(),)), ["fold-decoder", "fold-decoders"])
    assert not [m for m in model.modules() if isinstance(m, FoldedDecoder)]


def test_a_record_of_another_model_is_refused() -> None:
    records = rewrite(segformer(), Example((image(),)), FOLD)
    with pytest.raises(UsageError, match="does not fit 'decode_head'"):
        reapply(segformer(decoder_hidden_size=48), records)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("projection_bias", [True, False])
def test_bands_of_rows_make_up_the_whole(
    projection_bias: bool, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(2)
    model = model_with(ConvHead(width=150, projection_bias=projection_bias))
    (record,) = rewrite(model, Example((image(),)), FOLD)
    assert record.reason is None
    x = image(97, 131, seed=1, batch=batch)
    expected = undo(copy.deepcopy(model))(x)
    tops: list[int] = []

    def counted(*args: Any) -> Iterator[tuple[int, Tensor]]:
        for top, band in row_tiles_of_sum(*args):
            tops.append(top)
            yield top, band

    monkeypatch.setattr(folded_module, "row_tiles_of_sum", counted)
    height = output(model, x).shape[2]
    for elements, rows in ((1 << 22, height), (1, row_tiles_module.ROWS)):
        monkeypatch.setattr(row_tiles_module, "BAND", elements)
        tops.clear()
        assert_close(output(model, x), expected)
        assert tops == [*range(0, height, rows)] * batch


def test_a_hook_on_the_classifier_sees_every_call() -> None:
    model = model_with(ConvHead())
    rewrite(model, Example((image(),)), FOLD)
    expected, calls = output(model, image()), []
    classifier = only_folded(model).source.get_submodule("conv_seg")
    handle = classifier.register_forward_hook(lambda *call: calls.append(call))
    assert_close(output(model, image()), expected)
    handle.remove()
    assert len(calls) == 1


def test_both_forms_of_a_1x1_map_compute_the_same(model: nn.Module) -> None:
    rewrite(model, Example((image(),)), FOLD)
    x = image(97, 131, seed=1)
    expected = output(model, x)
    with pointwise_as("convolution"):
        assert_close(output(model, x), expected)
    assert torch.equal(output(model, x), expected)


def test_a_rewrite_of_ones_own_is_made_rebuilt_and_taken_back_by_its_kind() -> None:
    def flip(model: nn.Module) -> None:
        model.get_parameter("weight").data.neg_()

    def negate(model: nn.Module) -> None:
        note_undo(model, flip)
        flip(model)

    def apply(model: nn.Module, example: Example) -> list[Rewrite]:
        negate(model)
        return [Rewrite("negate", "", {}, 0.0)]

    def again(model: nn.Module, record: Rewrite) -> Callable[[], None]:
        return lambda: negate(model)

    kinds = {**REWRITES, "negate": RewriteKind(apply, again)}
    model, example = nn.Linear(2, 2), Example((torch.randn(1, 2),))
    weight = model.weight.detach().clone()
    records = rewrite(model, example, ["negate"], kinds=kinds)
    assert torch.equal(model.weight, -weight)
    undo(model)
    assert torch.equal(model.weight, weight)
    reapply(model, records, kinds=kinds)
    assert torch.equal(model.weight, -weight)
    with pytest.raises(UsageError, match="no rewrite is called 'negate'"):
        reapply(model, records)
