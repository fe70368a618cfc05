import json
import sys

import pytest
import torch
from torch import nn

from dynprune.errors import InputError, UsageError
from dynprune.models import ModelSource, build, classes_of, load_model, source_of
from tests.models.tiny_checkpoints import SEGFORMER, write_segformer

FACTORY = """
import torch
from torch import nn

ANSWER = 42

def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.GELU(), nn.Conv2d(4, 2, 1))

class Space:
    net = staticmethod(net)

def no_model():
    return 42

def broken():
    raise ZeroDivisionError("by the user")
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    """A module of factories in the working directory."""
    (tmp_path / "my_models.py").write_text(FACTORY)
    (tmp_path / "my_syntax.py").write_text("def")
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("my_models", None)


def test_a_transformers_directory_gives_the_written_models_bits(tmp_path):
    written = write_segformer(tmp_path, id2label={0: "sky", 1: "road"})
    loaded = load_model(str(tmp_path))
    assert not loaded.module.training
    assert loaded.classes == ("sky", "road")
    assert loaded.name == str(tmp_path)
    for key, value in written.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[key], value)


def test_weights_of_half_precision_are_loaded_in_float32(tmp_path):
    written = write_segformer(tmp_path, dtype=torch.float16)
    loaded = load_model(str(tmp_path))
    for key, value in written.state_dict().items():
        assert torch.equal(
            loaded.module.state_dict()[key], value.to(loaded.module.state_dict()[key])
        )
    assert next(loaded.module.parameters()).dtype == torch.float32


def test_a_source_survives_json_and_rebuilds_the_architecture(tmp_path):
    write_segformer(tmp_path)
    loaded = load_model(str(tmp_path), input_shape=(1, 3, 64, 64))
    source = ModelSource.from_json(json.loads(json.dumps(loaded.source.to_json())))
    rebuilt = build(source, seed=3)
    rebuilt.load_state_dict(loaded.module.state_dict())
    outputs = [loaded.example.run(model).logits for model in (loaded.module, rebuilt)]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("record", [{}, {"kind": "factory"}, {"kind": "transformers"}])
def test_a_source_that_is_not_complete_is_refused(record):
    with pytest.raises(InputError, match="source is not complete"):
        ModelSource.from_json(record)


def test_random_weights_follow_the_seed_and_leave_torchs_state_alone():
    def made(seed):
        loaded = load_model(
            None,
            weights="random",
            architecture="SegformerForSemanticSegmentation",
            config=SEGFORMER,
            input_shape=(1, 3, 32, 32),
            seed=seed,
        )
        return loaded.example.run(loaded.module).logits

    before = torch.random.get_rng_state()
    assert torch.equal(made(0), made(0))
    assert not torch.equal(made(0), made(1))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_random_weights_of_a_directory_need_no_weights_file(tmp_path):
    write_segformer(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    loaded = load_model(str(tmp_path), weights="random")
    assert type(loaded.module).__name__ == "SegformerForSemanticSegmentation"


def test_a_factory_in_the_working_directory_is_imported_and_called(factories):
    loaded = load_model("my_models:net", input_shape=(2, 3, 5, 5))
    assert loaded.example.run(loaded.module).shape == (2, 2, 5, 5)
    assert loaded.source == ModelSource("factory", factory="my_models:net")
    assert loaded.classes == ()
    nested = load_model("my_models:Space.net", input_shape=(1, 3, 5, 5))
    assert torch.equal(nested.module[0].weight, loaded.module[0].weight)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_absent:net", "no module 'my_absent'"),
        ("my_models:absent", "has no function 'absent'"),
        ("my_models:ANSWER", "has no function 'ANSWER'"),
        ("my_models:no_model", "returned int; it must return an nn.Module"),
        ("my_models:broken", "raised ZeroDivisionError: by the user"),
        ("my_syntax:net", "importing my_syntax raised SyntaxError"),
        ("my_models:net@here", "here was not written by dynprune"),
    ],
)
def test_a_factory_that_gives_no_model_is_refused_with_what_it_did(factories, name, message):
    with pytest.raises(InputError, match=message):
        load_model(name)


def test_a_written_directory_of_a_factorys_model_is_loaded_where_the_factory_is_typed(factories):
    from dynprune.models import Provenance
    from dynprune.models.storage import save

    loaded = load_model("my_models:net", input_shape=(1, 3, 5, 5))
    nn.init.zeros_(loaded.module[0].weight)
    save(
        loaded.module,
        "student",
        provenance=Provenance(loaded.source, loaded.name, (1, 3, 5, 5), ("a", "b")),
    )
    again = load_model("my_models:net@student")
    assert again.classes == ("a", "b")
    assert again.source == loaded.source
    assert again.example.args[0].shape == (1, 3, 5, 5)
    assert torch.equal(again.example.run(again.module), again.example.run(loaded.module))
    with pytest.raises(InputError, match="name it yourself: my_models:net@DIRECTORY"):
        load_model("student")


def test_a_factory_that_only_a_file_names_is_never_imported(factories):
    source = ModelSource.from_json({"kind": "factory", "factory": "my_models:net"})
    with pytest.raises(InputError, match="code that a file names is never run"):
        build(source)
    assert "my_models" not in sys.modules
    assert isinstance(build(source, factory="my_models:net"), nn.Sequential)
    assert isinstance(build(source, factory=nn.Identity), nn.Identity)


def test_a_source_that_names_a_foreign_class_runs_no_code():
    for architecture in ("AutoModel", "os", "GenerationConfig", "NoSuchModel"):
        with pytest.raises(InputError, match="no model class of transformers"):
            build(ModelSource("transformers", architecture=architecture, config=SEGFORMER))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "zork"}, "model_type='zork' is none of transformers"),
        ({}, "model_type=None"),
        ({**SEGFORMER, "hidden_sizes": "wide"}, "cannot be built from its configuration"),
    ],
)
def test_a_configuration_that_is_not_valid_is_refused(config, message):
    with pytest.raises(InputError, match=message):
        load_model(
            None, weights="random", architecture="SegformerForSemanticSegmentation", config=config
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no model was named"),
        ({"weights": "random"}, "need an architecture"),
        ({"weights": "random", "config": SEGFORMER}, "needs the architecture"),
    ],
)
def test_a_call_without_a_model_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        load_model(None, **arguments)


@pytest.mark.parametrize("name", ["/no/such/directory", "./absent", "what is:this", "a/b/c"])
def test_a_name_that_can_be_no_model_is_refused_at_once(name):
    with pytest.raises(InputError, match="no such directory"):
        load_model(name)


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "weights.pt").touch()
    with pytest.raises(InputError, match="it is a file"):
        load_model(str(tmp_path / "weights.pt"))


def test_numbered_classes_are_no_names(tmp_path):
    assert classes_of(write_segformer(tmp_path)) == ()
    assert classes_of(nn.Identity()) == ()


def test_the_source_of_a_plain_module_needs_its_factory():
    with pytest.raises(UsageError, match="give the module:function"):
        source_of(nn.Identity())
    assert source_of(nn.Identity(), "a:b").to_json() == {"kind": "factory", "factory": "a:b"}


def test_a_written_model_is_called_on_the_example_that_it_carries(tmp_path, monkeypatch):
    """Its shape alone would not tell token ids from pictures."""
    (tmp_path / "words.py").write_text(
        "import torch\n"
        "from torch import nn\n\n\n"
        "def make():\n"
        "    layers = nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 8)\n"
        "    model = nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), *layers)\n"
        "    model.example_input_array = torch.randint(0, 20, (1, 6))\n"
        "    return model\n"
    )
    monkeypatch.chdir(tmp_path)
    import dynprune
    from dynprune.models import load_model

    first = load_model("words:make")
    dynprune.apply(first.module, first.example, "any")
    dynprune.save(first.module, tmp_path / "written")
    again = load_model(f"words:make@{tmp_path / 'written'}")
    assert again.example.tensors[0].dtype == torch.int64
    again.example.run(again.module)
