"""What commands make of pictures and labels that are not the usual ones, counted by hand."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate
from transformers import SegformerForSemanticSegmentation

from tests.cli.conftest import CLASSES, HEIGHT, WIDTH

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OWN = {
    "image_processor_type": "SegformerImageProcessor",
    "do_resize": False,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [1.0, 0.9, 0.8],
}


def counted(directory, data, *, mean=MEAN, std=STD, size=None, read=lambda raw: raw):
    """Mean IoU on the val split by a count of single pixels; ``read`` gives -1 for no class."""
    model = SegformerForSemanticSegmentation.from_pretrained(directory).eval()
    shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
    matrix = np.zeros((CLASSES, CLASSES))
    for path in sorted((data / "images/val").iterdir()):
        picture = Image.open(path)
        if size is not None:
            picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
        truth = read(np.array(Image.open(data / "annotations/val" / path.name)).astype(int))
        with torch.no_grad():
            logits = model(((pixels - shift) / scale)[None]).logits
        found = interpolate(logits, truth.shape, mode="bilinear").argmax(1)[0].numpy()
        known = (truth >= 0) & (truth < CLASSES)
        np.add.at(matrix, (truth[known], found[known]), 1)
    right, seen = matrix.diagonal(), matrix.sum(1) > 0
    return float((right / (matrix.sum(0) + matrix.sum(1) - right))[seen].mean())


@pytest.fixture
def model(dense, tmp_path):
    """A copy of the dense model, to which settings may be added."""
    return shutil.copytree(dense, tmp_path / "model")


@pytest.fixture
def pictures(data, tmp_path):
    """A copy of the data, whose labels may be changed."""
    return shutil.copytree(data, tmp_path / "pictures")


@pytest.fixture
def relabelled(pictures):
    """Change every label map by a function of its values."""

    def change(by, split="*"):
        for path in sorted(pictures.glob(f"annotations/{split}/*.png")):
            values = np.array(Image.open(path)).astype(int)
            Image.fromarray(by(values).astype(np.uint8)).save(path)
        return pictures

    return change


def write_own(model, **more):
    (model / "preprocessor_config.json").write_text(json.dumps({**OWN, **more}))


@pytest.mark.parametrize(
    ("more", "how"),
    [
        ({}, {"mean": (0.1, 0.2, 0.3), "std": (1.0, 0.9, 0.8)}),
        ({"do_normalize": False}, {"mean": (0, 0, 0), "std": (1, 1, 1)}),
        (
            {"do_rescale": False},
            {
                "mean": tuple(m / 255 for m in (0.1, 0.2, 0.3)),
                "std": tuple(s / 255 for s in (1, 0.9, 0.8)),
            },
        ),
        (
            {"do_resize": True, "size": {"height": 64, "width": 64}},
            {"mean": (0.1, 0.2, 0.3), "std": (1.0, 0.9, 0.8), "size": (64, 64)},
        ),
        (
            {"do_resize": True, "size": {"shortest_edge": 64}},
            {"mean": (0.1, 0.2, 0.3), "std": (1.0, 0.9, 0.8), "size": (64, 96)},
        ),
        (
            {"do_reduce_labels": True},
            {"mean": (0.1, 0.2, 0.3), "std": (1.0, 0.9, 0.8), "read": lambda raw: raw - 1},
        ),
    ],
    ids=str,
)
def test_eval_follows_a_models_own_processor_and_says_so(run, model, data, more, how):
    write_own(model, **more)
    outcome = run("eval", model, "--data", data, "--json")
    assert outcome.document["miou"] == pytest.approx(counted(model, data, **how), abs=1e-3)
    assert "preprocessor_config.json of" in outcome.err
    assert outcome.document["preprocessing"]["from"] == "preprocessor_config.json"


def test_a_recipe_that_says_otherwise_is_followed_instead(run, model, data):
    write_own(model, do_resize=True, size=16)
    flags = ("--recipe", "any", "--set", f"data.mean={list(MEAN)}")
    outcome = run(
        "eval", model, "--data", data, "--json", *flags, "--set", f"data.std={list(STD)}",
        "--set", "data.resize=full",
    )  # fmt: skip
    assert outcome.document["miou"] == pytest.approx(counted(model, data), abs=1e-3)
    assert "the recipe says otherwise of mean, std, size" in outcome.err


def test_a_processor_that_cannot_be_followed_is_refused(run, model, data):
    write_own(model, do_flip_channel_order=True)
    assert "blue, green, red" in run("eval", model, "--data", data, code=4).err
    run("inspect", model)  # which looks at no picture


def test_what_apply_wrote_goes_on_as_its_model_did(run, model, data, recipe, tmp_path):
    """Gates that skip nothing: the written model scores as the dense one, with its own settings."""
    write_own(model, do_resize=True, size={"height": 32, "width": 64})
    outcome = run(
        "apply", model, "--recipe", recipe, "--data", data, "-o", tmp_path / "o", "--json",
        "--set", "sparsity.final=0.0",
    )  # fmt: skip
    assert "preprocessor_config.json of" in outcome.err
    assert outcome.document["preprocessing"]["resize"]["height"] == 32
    dense, gated = (
        run("eval", m, "--data", data, "--json").document for m in (model, tmp_path / "o")
    )
    assert gated["preprocessing"] == dense["preprocessing"]
    assert gated["miou"] == pytest.approx(dense["miou"], abs=1e-3)
    expected = counted(model, data, mean=(0.1, 0.2, 0.3), std=(1.0, 0.9, 0.8), size=(32, 64))
    assert dense["miou"] == pytest.approx(expected, abs=1e-3)


def test_what_distill_wrote_scores_as_its_last_validation(run, model, data, recipe, tmp_path):
    write_own(model, do_resize=True, size={"height": 32, "width": 64})
    flags = ("--teacher", model, "--recipe", recipe, "--data", data)
    outcome = run("distill", *flags, "-o", tmp_path / "o", "--json")
    assert outcome.document["preprocessing"]["mean"] == [0.1, 0.2, 0.3]
    scored = run("eval", tmp_path / "o", "--data", data, "--json").document
    assert scored["preprocessing"] == outcome.document["preprocessing"]
    assert scored["miou"] == pytest.approx(outcome.document["validation"]["miou"], abs=1e-6)


@pytest.mark.parametrize("names", [("sea", "sky", "land"), ("sky", "sea", "sand")])
def test_classes_of_other_names_are_told(run, model, data, names):
    config = json.loads((model / "config.json").read_text())
    config["id2label"] = dict(enumerate(names))
    config["label2id"] = {name: index for index, name in enumerate(names)}
    (model / "config.json").write_text(json.dumps(config))
    told = run("eval", model, "--data", data).err
    assert ("in another order" in told) == (names[2] == "land")
    index = 0 if names[2] == "land" else 2
    assert f"class {index} is {names[index]} to the model" in told


def test_reduced_labels_need_no_name_for_the_first(run, model, pictures):
    write_own(model, do_reduce_labels=True)
    (pictures / "classes.txt").write_text("nothing\nsky\nsea\nland\n")
    message = run("eval", model, "--data", pictures, code=4).err
    assert "leave the first name out" in message


def test_weights_of_another_number_of_classes_are_refused(run, model, data, recipe, tmp_path):
    flags = ("--teacher", model, "--recipe", recipe, "--data", data, "-o", tmp_path / "o")
    more = ("--set", "data.classes=2", "--set", "data.class_weights=[1.0, 2.0]")
    assert "holds 2 weights, but there are 3 classes" in run("distill", *flags, *more, code=2).err


def test_predict_follows_the_processor_too(run, model, data, tmp_path):
    """Without a mean, everything is another input, and so another label map."""
    picture = data / "images/val/0.png"
    write_own(model, do_normalize=False)
    outcome = run("predict", model, picture, "-o", tmp_path / "o", "--json")
    assert outcome.document["preprocessing"]["mean"] == [0, 0, 0]
    found = np.array(Image.open(tmp_path / "o/0_labels.png"))
    module = SegformerForSemanticSegmentation.from_pretrained(model).eval()
    pixels = torch.from_numpy(np.array(Image.open(picture))).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        logits = interpolate(module(pixels).logits, (HEIGHT, WIDTH), mode="bilinear")
    assert (found == logits.argmax(1)[0].numpy()).mean() > 0.999  # ties within rounding


@pytest.mark.parametrize("command", ["neurons", "flops", "all"])
def test_reports_follow_the_processor_too(run, gated, data, tmp_path, command):
    model = shutil.copytree(gated, tmp_path / "gated")
    write_own(model)
    more = ("-o", tmp_path / "page.html", "--engines", "") if command == "all" else ()
    outcome = run("report", command, model, "--data", data, "--json", *more)
    assert "preprocessor_config.json of" in outcome.err
    if command == "all":
        scored = run("eval", model, "--data", data, "--json").document
        assert outcome.document["miou"]["student"] == pytest.approx(scored["miou"])


@pytest.mark.parametrize("ignored", [[0], [1], [2], [0, 2], [254]])
def test_no_score_sees_what_is_ignored(run, model, data, ignored):
    flags = ("--recipe", "any", "--set", f"data.ignore_index={ignored}")
    found = run("eval", model, "--data", data, *flags, "--json").document
    read = lambda raw: np.where(np.isin(raw, ignored), -1, raw)  # noqa: E731
    assert found["miou"] == pytest.approx(counted(model, data, read=read), abs=1e-3)
    absent = [name for name, iou in found["per_class"].items() if iou is None]
    assert absent == [("sky", "sea", "land")[index] for index in ignored if index < 3]
    assert found["preprocessing"]["ignore_index"] == sorted({*ignored, 255})


@pytest.mark.parametrize("weights", ["inverse-root", None])
@pytest.mark.parametrize("scale", ["[0.2, 0.4]", "[1.0, 4.0]"])
def test_training_sees_nothing_of_what_is_ignored(
    run, model, relabelled, recipe, tmp_path, scale, weights
):
    """Crops that are larger than the picture are padded, and some hold no class at all."""

    def mostly_ignored(values):
        values[:, WIDTH // 4 :] = 0
        return values

    pictures = relabelled(mostly_ignored, "train")
    outcome = run(
        "distill", "--teacher", model, "--recipe", recipe, "--data", pictures, "--json",
        "-o", tmp_path / "o", "--set", "data.ignore_index=0", "--set", f"data.scale={scale}",
        "--set", f"data.class_weights={weights or 'null'}",
    )  # fmt: skip
    assert outcome.document["steps"] == 4
    scored = run("eval", tmp_path / "o", "--data", pictures, "--json").document
    assert scored["per_class"]["sky"] is None
    assert scored["miou"] == pytest.approx(outcome.document["validation"]["miou"], abs=1e-6)


def test_masks_of_0_and_255_are_refused_until_255_has_a_meaning(run, model, relabelled, recipe):
    pictures = relabelled(lambda values: (values == 2) * 255)
    for command in (
        ("eval", model),
        ("distill", "--teacher", model, "--recipe", recipe, "-o", pictures.parent / "o"),
    ):
        assert "label_map: {255: 1}" in run(*command, "--data", pictures, code=4).err
    flags = ("--recipe", "any", "--set", "data.label_map={255: 1}")
    found = run("eval", model, "--data", pictures, *flags, "--json").document
    read = lambda raw: (raw == 255).astype(int)  # noqa: E731
    assert found["miou"] == pytest.approx(counted(model, pictures, read=read), abs=1e-3)


def test_grey_levels_are_refused_with_a_mapping_that_then_reads_them(run, model, relabelled):
    pictures = relabelled(lambda values: np.take([0, 128, 255], values))
    message = run("eval", model, "--data", pictures, code=4).err
    assert "data.label_map: {0: 0, 128: 1, 255: 2}" in message
    flags = ("--recipe", "any", "--set", "data.label_map={0: 0, 128: 1, 255: 2}")
    found = run("eval", model, "--data", pictures, *flags, "--json").document
    read = lambda raw: np.searchsorted([0, 128, 255], raw)  # noqa: E731
    assert found["miou"] == pytest.approx(counted(model, pictures, read=read), abs=1e-3)


@pytest.mark.parametrize("named", [True, False])
def test_classes_that_a_split_lacks_are_told_and_left_out(run, model, relabelled, named):
    pictures = relabelled(lambda values: values.clip(max=1), "val")
    if not named:
        (pictures / "classes.txt").unlink()
    outcome = run("eval", model, "--data", pictures, "--json")
    expected = counted(model, pictures)
    assert outcome.document["miou"] == pytest.approx(expected, abs=1e-3)
    assert list(outcome.document["per_class"].values())[2] is None
    assert f"leaves them out: {'land' if named else 'class 2'}" in outcome.err


def test_a_run_whose_val_split_lacks_a_class_trains(run, model, relabelled, recipe, tmp_path):
    pictures = relabelled(lambda values: values.clip(max=1), "val")
    (pictures / "classes.txt").unlink()
    run(
        "distill", "--teacher", model, "--recipe", recipe, "--data", pictures, "-o",
        tmp_path / "o", "--set", "data.class_weights=inverse-root", "--json",
    )  # fmt: skip


def test_a_label_that_the_model_does_not_know_is_refused(run, model, relabelled, recipe, tmp_path):
    pictures = relabelled(lambda values: values + 2)
    (pictures / "classes.txt").unlink()
    for command in (
        ("eval", model),
        ("distill", "--teacher", model, "--recipe", recipe, "-o", tmp_path / "o"),
    ):
        message = run(*command, "--data", pictures, code=4).err
        assert "holds the value 3 (" in message
        assert "3 classes" in message
    assert not (tmp_path / "o").exists()
