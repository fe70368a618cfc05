"""Every task goes the whole way: apply, distill, eval, predict, neurons and the page."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.cli import task_models as tiny
from tests.cli.conftest import same_weights

FIGURES = {
    "classification": {"images", "top1", "top5", "per_class"},
    "features": {"images", "cosine", "worst", "neighbours"},
    "text": {"texts", "cosine", "worst", "neighbours"},
    "any": {"calls", "cosine", "worst", "error", "accuracy"},
}
METRIC = {"classification": "top1", "features": "cosine", "text": "cosine", "any": "cosine"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Models and data of every task, and the module that the user's functions are in."""
    root = tmp_path_factory.mktemp("tasks")
    tiny.write_classifier(root / "classifier")
    tiny.write_encoder(root / "encoder")
    tiny.write_text_encoder(root / "bert")
    tiny.write_pictures(root / "colours")
    tiny.write_pictures(root / "photos", classes=False)
    tiny.write_text(root / "lines.txt")
    (root / "tiny_user_module.py").write_text(tiny.MODULE)
    for name, text in tiny.RECIPES.items():
        (root / f"{name}.yaml").write_text(tiny.APPLY + text + tiny.STAGES)
    return root


@pytest.fixture(autouse=True)
def there(place, monkeypatch):
    monkeypatch.chdir(place)


# task -> teacher, data
CASES = {
    "classification": ("classifier", "colours"),
    "features": ("encoder", "photos"),
    "text": ("bert", "lines.txt"),
    "any": ("tiny_user_module:make", "tiny_user_module:calls"),
}


def saved(task, directory):
    return f"tiny_user_module:make@{directory}" if task == "any" else directory


@pytest.fixture(params=CASES)
def task(request):
    return request.param


@pytest.fixture
def trained(task, place, run):
    """Train by the command line, once a task."""
    output = place / f"run-{task}"
    teacher, data = CASES[task]
    if not output.exists():
        done = run(
            "distill", "--recipe", f"{task}.yaml", "--data", data, "--teacher", teacher,
            "-o", output, "--device", "cpu", "--json",
        )  # fmt: skip
        assert METRIC[task] in done.document["validation"]
        assert done.document["steps"] == 4
    return output


def compare(task):
    return [] if task == "classification" else ["--teacher", CASES[task][0]]


def test_a_trained_student_scores_as_its_run_recorded(task, trained, run):
    done = run("eval", saved(task, trained), "--data", CASES[task][1], *compare(task), "--json")
    assert FIGURES[task] <= set(done.document)
    records = [json.loads(r) for r in (trained / "metrics.jsonl").read_text().splitlines()]
    for name, value in records[-1]["validation"].items():
        # Masked in training, compact here: float32 sums in another order.
        assert done.document[name] == pytest.approx(value, abs=1e-4)


def test_a_teacher_is_its_own_equal_or_scores_by_labels_alone(task, run):
    teacher, data = CASES[task]
    done = run("eval", teacher, "--data", data, *compare(task), "--json").document
    if task == "classification":
        assert 0 <= done["top1"] <= done["top5"] == 1.0  # of three classes, five are all
        assert set(done["per_class"]) == set(tiny.COLOURS)
        assert done["images"] == 9
        mean = sum(done["per_class"].values()) / 3
        assert done["top1"] == pytest.approx(mean)
    else:
        assert done["cosine"] == pytest.approx(1.0, abs=1e-5)
        assert done.get("neighbours", 1.0) == 1.0
        assert done.get("error", 0.0) == pytest.approx(0.0, abs=1e-9)


def test_an_interrupted_run_goes_on_to_the_same_weights(task, trained, place, run):
    teacher, data = CASES[task]
    again = place / f"again-{task}"
    shutil.copytree(trained, again)
    shutil.rmtree(again / "checkpoints" / "step-4")  # as if it had been stopped behind step 2
    (again / "model.safetensors").unlink()
    run("distill", "--data", data, "--teacher", teacher, "-o", again, "--resume", "--device", "cpu")
    assert same_weights(trained, again)


def test_other_data_does_not_resume_a_run(place, run, tmp_path):
    more, output = tmp_path / "more", tmp_path / "run"
    shutil.copytree(place / "colours", more)
    arguments = ["--data", more, "--teacher", "classifier", "-o", output, "--device", "cpu"]
    run("distill", "--recipe", "classification.yaml", *arguments)
    shutil.copy(more / "train/red/red0.png", more / "train/red/red9.png")
    done = run("distill", *arguments, "--resume", code=2)
    assert "data.images: 18 -> 19" in done.err


def test_the_page_shows_every_task(task, trained, place, run):
    data, page = CASES[task][1], place / f"{task}.html"
    done = run(
        "report", "all", saved(task, trained), "--data", data, "--teacher", CASES[task][0],
        "-o", page, "--engines", "", "--json",
    )  # fmt: skip
    assert done.document["task"] == task
    assert set(done.document["scores"]["student"]) <= FIGURES[task]
    text = page.read_text()
    assert "mIoU" not in text
    for name, value in done.document["scores"]["student"].items():
        assert f"{value:.4f}" in text, name
    shown = {
        "classification": ("top-1", "green0.png", "Accuracy by class", "data:image/jpeg"),
        "features": ("nearest neighbour kept", "blue0.png", "student", "data:image/jpeg"),
        "text": ("nearest neighbour kept", "Texts", "teacher"),
        "any": ("relative error", "call 0", "[3, 16]"),
    }
    for words in shown[task]:
        assert words in text


def test_neurons_are_reported_on_any_data(task, trained, run):
    done = run("report", "neurons", saved(task, trained), "--data", CASES[task][1], "--json")
    assert done.document["groups"]


def test_apply_calibrates_on_any_data(task, place, run):
    teacher, data = CASES[task]
    output = place / f"gated-{task}"
    done = run(
        "apply", teacher, "--recipe", f"{task}.yaml", "--data", data, "-o", output, "--json"
    )  # fmt: skip
    assert done.document["calibrated"]
    run("eval", saved(task, output), "--data", data, *compare(task))


@pytest.mark.parametrize("task", ["classification", "any"])
def test_a_gated_model_is_held_to_its_laws_on_its_own_data(task, trained, run):
    done = run("check", saved(task, trained), "--data", CASES[task][1], "--json").document
    assert "broken" not in {law["status"] for law in done["laws"]}
    assert "ok" in {law["status"] for law in done["laws"]}


def test_pictures_are_classified_with_the_first_five_classes(place, run):
    done = run(
        "predict", "classifier", "colours/val/red/red0.png", "colours/val/blue/blue1.png",
        "-o", place / "classes", "--json",
    )  # fmt: skip
    written = json.loads((place / "classes" / "classes.json").read_text())
    assert [row["image"] for row in written] == [row["input"] for row in done.document["inputs"]]
    for row in written:
        shares = [choice["probability"] for choice in row["top"]]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1.0, abs=1e-5)


def test_features_embeddings_and_outputs_are_written_as_safetensors(place, run):
    run("predict", "encoder", "photos/val/red0.png", "-o", place / "seen")
    features = load_file(place / "seen" / "red0.safetensors")["features"]
    assert features.shape == (17, 16)  # a class token and 4 x 4 patches
    assert (place / "seen" / "red0.png").is_file()
    run("predict", "bert", "lines.txt", "-o", place / "embedded")
    vectors = load_file(place / "embedded" / "lines.safetensors")["embeddings"]
    assert vectors.shape == (30, 16)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(30))
    nearest = json.loads((place / "embedded" / "lines.json").read_text())
    assert len(nearest) == 30
    run("predict", "tiny_user_module:make", "tiny_user_module:calls", "-o", place / "outputs")
    outputs = load_file(place / "outputs" / "tiny_user_module.calls-0000.safetensors")
    assert outputs["output1"].shape == (3, 3)


def test_a_folder_that_is_a_class_of_the_models_names_is_that_class(place, run, tmp_path):
    shutil.copytree(place / "classifier", tmp_path / "named")
    config = json.loads((tmp_path / "named/config.json").read_text())
    names = ["red", "blue", "green"]  # not in sorted order
    config["id2label"] = dict(enumerate(names))
    config["label2id"] = {name: index for index, name in enumerate(names)}
    (tmp_path / "named/config.json").write_text(json.dumps(config))
    pictures = sorted(map(str, (place / "colours/val").rglob("*.png")))
    found = run("predict", tmp_path / "named", *pictures, "-o", tmp_path / "o", "--json").document
    first = {row["input"]: row["top"][0]["class"] for row in found["inputs"]}
    right = [path.split("/")[-2] == name for path, name in first.items()]
    done = run("eval", tmp_path / "named", "--data", "colours", "--json").document
    assert done["top1"] == pytest.approx(sum(right) / len(right))


@pytest.fixture
def fails(run):
    """Run a command that must fail; return its one message."""

    def call(*arguments, code):
        outcome = run(*arguments, code=code)
        assert outcome.out == ""
        assert "Traceback" not in outcome.err
        assert outcome.err.count("error: ") == 1
        return outcome.err

    return call


@pytest.fixture
def colours(place, tmp_path):
    return shutil.copytree(place / "colours", tmp_path / "colours")


def distil(task, data, output, teacher=None):
    return (
        "distill", "--recipe", f"{task}.yaml", "--data", data, "--teacher",
        teacher or CASES[task][0], "-o", output, "--device", "cpu",
    )  # fmt: skip


def test_a_class_without_pictures_is_named(fails, colours, tmp_path):
    (colours / "val" / "violet").mkdir()
    message = fails("eval", "classifier", "--data", colours, code=4)
    assert "class violet is empty" in message
    assert not (tmp_path / "o").exists()


def test_a_number_of_classes_unlike_the_models_is_told(fails, colours):
    shutil.copytree(colours / "train/red", colours / "train/violet")
    message = fails("eval", "classifier", "--data", colours, code=4)
    assert "logits of 3 classes" in message
    assert "has 4 folders (blue to violet)" in message


def test_a_damaged_picture_is_named(fails, colours, tmp_path):
    (colours / "train/red/red1.png").write_bytes(b"no picture")
    message = fails(*distil("classification", colours, tmp_path / "o"), code=4)
    assert "red1.png is not a picture" in message


def test_pictures_beside_the_classes_are_refused(fails, colours):
    shutil.copy(colours / "val/red/red0.png", colours / "val/stray.png")
    assert "lie in no class's folder" in fails("eval", "classifier", "--data", colours, code=4)


def test_an_empty_text_file_is_refused(fails, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    arguments = ("eval", "bert", "--data", tmp_path / "empty.txt", "--teacher", "bert")
    assert "is empty; write one sentence a line" in fails(*arguments, code=4)
    (tmp_path / "empty.txt").write_text("\n \n")
    assert "holds 0 sample" in fails(*arguments, code=4)


def test_text_without_a_tokenizer_says_where_to_put_one(fails, place, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(place / "bert", bare)
    for path in bare.glob("tokenizer*"):
        path.unlink()
    message = fails("eval", bare, "--data", "lines.txt", "--teacher", bare, code=4)
    assert "needs the tokenizer" in message


@pytest.mark.parametrize(
    ("function", "code", "words"),
    [
        ("nothing", 4, "yields no call"),
        ("some_labels", 4, "yields labels for 1 of 2 calls"),
        ("broken", 4, "raised RuntimeError: the disk is gone"),
        ("absent", 4, "has no function 'absent'"),
    ],
)
def test_a_function_that_yields_no_data_is_refused(fails, tmp_path, function, code, words):
    data = f"tiny_user_module:{function}"
    assert words in fails(*distil("any", data, tmp_path / "o"), code=code)
    assert not (tmp_path / "o").exists()


def test_scores_without_labels_need_a_teacher(fails):
    assert "add --teacher" in fails("eval", "bert", "--data", "lines.txt", code=2)


@pytest.mark.parametrize(
    ("task", "data", "code", "words"),
    [
        ("text", "colours", 4, "train.txt and val.txt"),
        ("any", "colours", 2, "is no module:function"),
        ("classification", "lines.txt", 4, "it is a file"),
        ("classification", "tiny_user_module:calls", 4, "does not exist"),
        ("features", "lines.txt", 4, "it is a file"),
    ],
)
def test_data_of_another_task_than_the_recipes_is_refused(fails, tmp_path, task, data, code, words):
    assert words in fails(*distil(task, data, tmp_path / "o"), code=code)


def test_an_encoder_on_classes_is_compared_by_its_features(run):
    found = run("eval", "encoder", "--data", "colours", "--teacher", "encoder", "--json").document
    assert found["cosine"] == pytest.approx(1.0, abs=1e-5)


def test_a_task_that_is_none_is_an_invalid_recipe(fails, tmp_path):
    message = fails(
        *distil("classification", "colours", tmp_path / "o"), "--set", "data.task=detection", code=2
    )
    assert "task 'detection' is not one of" in message


def test_code_that_a_recipe_names_as_data_is_never_run(fails, tmp_path):
    message = fails(
        *distil("any", "tiny_user_module:calls", tmp_path / "o"),
        "--set", "data.function=tiny_user_module:calls", code=2,
    )  # fmt: skip
    assert "data.function: unknown key" in message
