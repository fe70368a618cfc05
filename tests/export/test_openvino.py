"""An OpenVINO file computes what the gated model computes, on inputs of any size."""

from pathlib import Path

import pytest
import torch
from torch import nn

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.export.openvino import export_openvino, openvino_runner
from dynprune.export.record import Export
from dynprune.gate import recording
from tests.export.conftest import SIZES, assert_close, expected

from .conftest import pictures


@pytest.fixture(scope="module")
def exported(
    gated: nn.Module, example: Example, tmp_path_factory: pytest.TempPathFactory
) -> Export:
    return export_openvino(gated, example, tmp_path_factory.mktemp("openvino") / "model.xml")


@pytest.mark.parametrize("size", SIZES)
def test_the_file_agrees_with_the_model_at_every_size(
    gated: nn.Module, exported: Export, size: tuple[int, int]
) -> None:
    x = pictures(*size, seed=3)
    assert_close(openvino_runner(exported.path)([x]), expected(gated, x))


def test_every_instance_of_a_batch_is_computed_by_its_own_neurons(
    gated: nn.Module, exported: Export
) -> None:
    x = pictures(97, 131, batch=3, seed=1)
    with recording() as seen:
        wanted = expected(gated, x)
    for (found,) in seen.values():
        assert not torch.equal(found.selection.keep[0], found.selection.keep[2])
    assert_close(openvino_runner(exported.path)([x]), wanted)


def test_the_weights_lie_beside_the_file(exported: Export) -> None:
    names = sorted(path.name for path in exported.path.parent.iterdir())
    assert names == ["model.bin", "model.xml"]


def test_bfloat16_arithmetic_stays_near(gated: nn.Module, exported: Export) -> None:
    x = pictures(64, 64, seed=2)
    run = openvino_runner(exported.path, arithmetic="bf16")
    wanted = expected(gated, x)
    # 8 bits of mantissa, and now and then another choice between almost equal neurons.
    assert (run([x]) - wanted).abs().max() <= 1e-1 * wanted.abs().max()


def test_the_name_must_be_one_that_openvino_reads(gated: nn.Module, example: Example) -> None:
    with pytest.raises(UsageError, match=r"must end in \.xml"):
        export_openvino(gated, example, Path("model.onnx"))
