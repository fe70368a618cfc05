"""Laws of files and programs, with a defect in what is written or read."""

import copy

import pytest
import torch
import transformers as hf

import dynprune
from dynprune.example import Example
from dynprune.laws import EXPORT_LAWS, LAWS, Subject, judge
from dynprune.models import storage
from tests.laws import nets
from tests.zoo import enliven


@pytest.fixture
def gated(tmp_path):
    torch.manual_seed(0)
    config = hf.ViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
    )
    dense = hf.ViTForImageClassification(config).eval()
    enliven(dense)
    call = Example((torch.randn(3, 3, 32, 32),))
    model = dynprune.apply(copy.deepcopy(dense), call, "any")
    return Subject(model, dense, (call,), tmp_path)


def test_a_model_that_is_saved_and_loaded_is_the_same(gated):
    assert judge("save and load", LAWS["save and load"], gated).status == "ok"


def test_a_file_that_loses_a_weight_is_found(gated, monkeypatch):
    load = storage.load

    def lossy(*args, **kwargs):
        model = load(*args, **kwargs)
        with torch.no_grad():
            model.classifier.bias += 1e-6
        return model

    monkeypatch.setattr(storage, "load", lossy)
    assert judge("save and load", LAWS["save and load"], gated).status == "broken"


def test_a_file_that_does_not_load_is_no_refusal_but_broken(gated, monkeypatch):
    def refuses(*args, **kwargs):
        raise dynprune.errors.InputError("damaged")

    monkeypatch.setattr(storage, "load", refuses)
    verdict = judge("save and load", LAWS["save and load"], gated)
    assert (verdict.status, verdict.refused) == ("broken", [])


def test_what_is_restored_is_held_to_what_is_built_anew(gated):
    law = LAWS["restored equals built anew"]
    same = Subject(gated.model, gated.dense, gated.calls, gated.directory, anew=gated.dense)
    assert judge("anew", law, same).status == "ok"
    other = copy.deepcopy(gated.dense)
    with torch.no_grad():
        other.classifier.bias += 1.0
    differs = Subject(gated.model, gated.dense, gated.calls, gated.directory, anew=other)
    assert judge("anew", law, differs).status == "broken"
    assert judge("anew", law, gated).status == "not tried"


@pytest.mark.parametrize(
    ("law", "defect"), [("torch.export", nets.ExportWrong), ("torch.compile", nets.CompileWrong)]
)
def test_a_program_that_answers_otherwise_is_found(law, defect, subject, statuses):
    assert statuses(subject(nets.Net), law) == {law: "ok"}
    assert statuses(subject(defect), law) == {law: "broken"}


def test_an_onnx_file_that_answers_otherwise_is_found(gated, monkeypatch):
    onnx = pytest.importorskip("dynprune.export.onnx")

    def other(model, example, path, **kwargs):
        if model is gated.model:
            raise dynprune.errors.UsageError("the file computes something else")
        return Written()

    class Written:
        max_error = 0.0

    monkeypatch.setattr(onnx, "export_onnx", other)
    verdict = judge("onnx", EXPORT_LAWS["onnx"], gated)
    assert verdict.status != "ok"
    assert "computes something else" in verdict.detail
