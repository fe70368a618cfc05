import pytest
import torch
from safetensors.torch import load_file

from dynprune.data import open_dataset
from dynprune.demo import SOURCE, make_dataset, train_teacher
from dynprune.demo.scenes import CLASSES, SIZE
from dynprune.errors import OutputError
from dynprune.models import build, load_model
from dynprune.pipeline.arguments import model_arguments
from dynprune.recipe import load_recipe
from dynprune.tasks.evaluate import evaluate


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    root = make_dataset(tmp_path_factory.mktemp("demo") / "data", training=10, validation=2)
    return open_dataset(root, "train"), open_dataset(root, "val")


def test_the_teacher_that_is_written_is_the_one_that_was_scored(splits, tmp_path):
    records = list(train_teacher(*splits, tmp_path / "teacher", steps=3))
    assert [record.step for record in records] == [1, 2, 3]
    assert [record.evaluation is None for record in records] == [True, True, False]
    loaded = load_model(str(tmp_path / "teacher"))
    assert loaded.classes == CLASSES
    again = evaluate(loaded.module, splits[1])
    assert torch.equal(again.confusion, records[-1].evaluation.confusion)
    assert records[-1].to_json()["miou"] == again.miou


def test_the_same_seed_trains_the_same_weights_and_leaves_torchs_state_alone(splits, tmp_path):
    weights = []
    for name in "ab":
        torch.manual_seed(ord(name))
        before = torch.random.get_rng_state()
        for record in train_teacher(*splits, tmp_path / name, steps=2):
            assert record.loss > 0
        assert torch.equal(torch.random.get_rng_state(), before)
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_the_loss_falls(splits, tmp_path):
    losses = [record.loss for record in train_teacher(*splits, tmp_path / "teacher", steps=30)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_an_output_that_is_taken_is_refused_before_training(splits, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="not empty"):
        next(train_teacher(*splits, tmp_path))


def test_the_teacher_is_a_segformer_of_four_stages_with_the_published_decoder():
    model = build(SOURCE)
    assert len(model.segformer.stages) == 4
    fuse = model.decode_head.linear_fuse
    assert fuse.in_channels == 4 * fuse.out_channels
    assert fuse.bias is None
    assert model(torch.zeros(1, 3, *SIZE)).logits.shape[1] == len(CLASSES)


def test_the_demos_recipe_describes_the_teacher():
    described = load_model(None, weights="random", **model_arguments(load_recipe("demo")))
    assert described.example.args[0].shape == (1, 3, *SIZE)
    shapes = [
        {key: value.shape for key, value in model.state_dict().items()}
        for model in (described.module, build(SOURCE))
    ]
    assert shapes[0] == shapes[1]
