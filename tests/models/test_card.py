"""The model card: what a hub shows of a directory that dynprune wrote."""

import re

import pytest
import yaml
from huggingface_hub import CommitOperationAdd, ModelCard
from transformers import SegformerForSemanticSegmentation

import dynprune
from dynprune.gate import GateConfig, attached, gate_model, gates
from dynprune.graph import find_groups
from dynprune.models import ModelSource, Provenance, set_provenance, source_of
from dynprune.models.card import model_card
from dynprune.models.storage import save
from tests.gate.zoo_laws import error, run
from tests.zoo import ZOO


@pytest.fixture
def gated():
    model, example = ZOO["segformer"].made()
    grouping = find_groups(model, example)
    configs = {g.name: GateConfig(prune_ratio=0.5, align=1) for g in grouping.candidates}
    gate_model(model, example, grouping.groups, configs)
    shape = tuple(example.tensors[0].shape)
    set_provenance(model, Provenance(source_of(model), "owner/dense-model", shape))
    return model, example


def front(card):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])


def test_a_written_model_has_a_card_that_a_hub_reads(gated, tmp_path):
    out = save(gated[0], tmp_path / "out")
    card = ModelCard.load(out / "README.md")
    assert card.data.base_model == "owner/dense-model"
    assert card.data.library_name == "dynprune"
    assert card.data.license == "other"
    assert card.data.pipeline_tag == "image-segmentation"
    assert card.data.tags == ["dynprune", "dynamic-pruning"]


def test_the_code_of_a_card_loads_the_model(gated, tmp_path):
    model, example = gated
    out = save(model, tmp_path / "out")
    code = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)[1]
    names = {}
    exec(code.replace("DIRECTORY", str(out)), names)
    assert error(run(names["model"], example), run(model, example)) == 0.0


def test_the_folder_is_pushed_whole_as_any_folder_is(gated, tmp_path):
    out = save(gated[0], tmp_path / "out")
    for path in out.iterdir():
        added = CommitOperationAdd(path.name, path)
        assert added.upload_info.size == path.stat().st_size
        assert not path.is_symlink()
        assert path.stat().st_mode & 0o444 == 0o444


def test_the_figures_are_those_of_the_model(gated):
    model, _ = gated
    known = Provenance(source_of(model), "./runs/dense", (1, 3, 64, 64))
    plans = attached(model).plans
    card = model_card(model, known, plans, scores={"miou": 0.51234}, steps=70)
    own = sum(p.numel() for gate in gates(model).values() for p in gate.parameters())
    assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M" in card
    assert f"{own / 1e6:.3f} M" in card
    assert "| miou, last validation | 0.5123 |" in card
    assert "70 steps" in card
    assert "base_model" not in front(card)
    assert "# dense, dynamically pruned" in card


def test_the_licence_is_the_dense_models_where_its_card_tells(gated, tmp_path):
    model, _ = gated
    known = Provenance(source_of(model), str(tmp_path), (1, 3, 64, 64))
    text = (
        "---\nlicense: other\nlicense_name: nvidia-x\nlicense_link: https://x.test/l\n---\n# Hi\n"
    )
    (tmp_path / "README.md").write_text(text)
    found = front(model_card(model, known, ()))
    assert (found["license_name"], found["license_link"]) == ("nvidia-x", "https://x.test/l")
    assert str(tmp_path) not in model_card(model, known, ())


@pytest.mark.parametrize(
    "text", ["", "# no front matter", "---\n!!python/name:os.x\n---\n", "---\n[\n"]
)
def test_a_card_that_cannot_be_read_tells_no_licence(gated, tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    known = Provenance(source_of(gated[0]), str(tmp_path), (1, 3, 64, 64))
    assert front(model_card(gated[0], known, ()))["license"] == "other"


def test_a_model_of_a_users_own_is_loaded_with_their_factory(gated):
    known = Provenance(ModelSource("factory", factory="my.models:make"), "my.models:make", ())
    card = model_card(gated[0], known, ())
    assert 'dynprune.load("DIRECTORY", factory=my.models.make)' in card
    assert "import my.models" in card


def test_the_dense_class_still_reads_the_configuration(gated, tmp_path):
    out = save(gated[0], tmp_path / "out")
    assert SegformerForSemanticSegmentation.config_class.from_pretrained(out).model_type == (
        "segformer"
    )
    assert dynprune.load(out) is not None
