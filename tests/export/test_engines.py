"""One model runs in every engine, and its forms are timed together."""

from typing import Any

import pytest
import torch
from torch import nn

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.export.engines import ENGINES, RUNNERS, Subject, latency_report
from dynprune.export.onnx import onnx_model
from dynprune.measure.executed import executed


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return self.conv(picture)


def test_a_model_is_timed_in_every_engine() -> None:
    model, example = Small(), Example((torch.randn(2, 3, 16, 16),))
    threads = torch.get_num_threads()
    report = latency_report(model, example, ENGINES, runs=2, warmup=1, threads=1)
    assert report.threads == 1
    assert report.batch == 2
    assert tuple(report.engines) == ENGINES
    for engine in report.engines.values():
        assert engine.macs == dict.fromkeys(
            ("dense", "rewritten", "pruned"), executed(model, example)
        )
        assert all(len(times) == 2 for times in engine.milliseconds.values())
    assert torch.get_num_threads() == threads
    assert model.training


def test_a_pruned_model_executes_less_in_the_report(gated: nn.Module, example: Example) -> None:
    report = latency_report(gated, example, ["torch"], runs=1, warmup=0, threads=1)
    macs = report.engines["torch"].macs
    assert macs["pruned"] < macs["rewritten"] < macs["dense"]


def test_the_dense_form_alone_keeps_its_norms(
    gated: nn.Module, example: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = []

    def spied(*args: Any, as_published: bool, **options: Any) -> Any:
        published.append(as_published)
        return onnx_model(*args, as_published=as_published, **options)

    monkeypatch.setattr("dynprune.export.onnx.onnx_model", spied)
    latency_report(gated, example, ["openvino"], runs=1, warmup=0, threads=1)
    assert published == [True, False, False]


def test_an_unknown_engine_is_named() -> None:
    with pytest.raises(UsageError, match="no engine is called 'tensorrt'; there are: torch,"):
        latency_report(Small(), Example((torch.randn(1, 3, 8, 8),)), ["tensorrt"])


def test_an_engine_of_ones_own_is_timed_beside_ours(gated: nn.Module, example: Example) -> None:
    seen: list[tuple[bool, int]] = []

    def counted(subject: Subject, threads: int) -> Any:
        seen.append((subject.as_published, threads))
        return lambda: subject.example.run(subject.model)

    engines = {"mine": counted, "torch": RUNNERS["torch"]}
    report = latency_report(gated, example, engines, runs=1, warmup=0, threads=1)
    assert list(report.engines) == ["mine", "torch"]
    assert seen == [(True, 1), (False, 1), (False, 1)]  # dense, rewritten, pruned
