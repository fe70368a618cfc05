"""Saving and loading, and what a damaged directory says."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from dynprune.errors import InputError, OutputError, UsageError
from dynprune.gate import attached, gates, is_gated, set_prune_ratio
from dynprune.graph import find_groups
from dynprune.models import Provenance, provenance_of, set_provenance, source_of
from dynprune.models.manifest import is_as_written, read_manifest
from dynprune.models.provenance import without_place
from dynprune.models.storage import load, save
from dynprune.pipeline import restore
from dynprune.rewrite import rewrite
from tests.gate.zoo_laws import error, run
from tests.zoo import ZOO


@pytest.fixture(scope="module")
def dense():
    return ZOO["segformer"].made()


@pytest.fixture
def gated(dense):
    """A small SegFormer, folded and gated, with predictors that have an opinion."""
    import copy

    from dynprune.gate import GateConfig, gate_model

    model, example = copy.deepcopy(dense[0]), dense[1]
    rewrites = rewrite(model, example, ["fold-decoder", "channels-last"])
    grouping = find_groups(model, example)
    configs = {g.name: GateConfig(prune_ratio=0.5, align=1) for g in grouping.candidates}
    gate_model(model, example, grouping.groups, configs)
    torch.manual_seed(0)
    for gate in gates(model).values():
        nn.init.normal_(gate.predictor.up.weight)
        nn.init.normal_(gate.prior)
    shape = tuple(example.tensors[0].shape)
    set_provenance(model, Provenance(source_of(model), "tiny", shape, rewrites=tuple(rewrites)))
    return model, example


def test_loading_gives_the_same_bits_and_the_same_function(gated, tmp_path):
    model, example = gated
    set_prune_ratio(model, 0.25)
    wanted = run(model, example.batched(2))
    again = load(save(model, tmp_path / "out"))
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert [p.to_json() for p in attached(again).plans] == [
        p.to_json() for p in attached(model).plans
    ]
    assert error(run(again, example.batched(2)), wanted) == 0.0


def test_what_was_loaded_can_be_restored_to_the_dense_bits(dense, gated, tmp_path):
    again = restore(load(save(gated[0], tmp_path / "out")))
    assert not is_gated(again)
    wanted, found = dense[0].state_dict(), again.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    assert error(run(again, dense[1]), run(dense[0], dense[1])) == 0.0


def test_a_directory_that_is_not_empty_is_kept_unless_overwritten(gated, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        save(gated[0], out)
    assert [p.name for p in out.iterdir()] == ["precious.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    with pytest.raises(OutputError, match="no model of dynprune"):
        save(gated[0], out, overwrite=True)
    assert [p.name for p in out.iterdir()] == ["precious.txt"]


def test_a_model_is_replaced_when_that_is_asked_for(gated, tmp_path):
    out = save(gated[0], tmp_path / "out")
    set_prune_ratio(gated[0], 0.25)
    save(gated[0], out, overwrite=True)
    ratios = json.loads((out / "dynprune.json").read_text())["prune_ratios"]
    assert set(ratios.values()) == {0.25}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_save_that_fails_leaves_what_was_there(gated, tmp_path, monkeypatch):
    out = save(gated[0], tmp_path / "out")
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dynprune.models.storage._write_json", full)
    with pytest.raises(OutputError, match="No space left"):
        save(gated[0], out, overwrite=True)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def _truncate(out: Path) -> None:
    path = out / "model.safetensors"
    path.write_bytes(path.read_bytes()[:2000])


def _forge(out: Path) -> None:
    (out / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")


def _lose_weights(out: Path) -> None:
    (out / "model.safetensors").unlink()


def _garble(out: Path) -> None:
    (out / "dynprune.json").write_text('{"schema": "dynprune/1", ')


def _change(key: str, value: object) -> Callable[[Path], None]:
    def change(out: Path) -> None:
        manifest = json.loads((out / "dynprune.json").read_text())
        manifest[key] = value
        (out / "dynprune.json").write_text(json.dumps(manifest))

    return change


def _change_groups(key: str, value: object) -> Callable[[Path], None]:
    def change(out: Path) -> None:
        groups = json.loads((out / "dynprune.json").read_text())["groups"]
        _change("groups", [{**group, key: value} for group in groups])(out)

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "damaged"),
        (_forge, "damaged"),
        (_lose_weights, "missing"),
        (_garble, "Cannot read"),
        (_change("schema", "dynprune/99"), "dynprune/99"),
        (_change("groups", 7), "does not describe"),
        (_change("groups", [{"group": {}}]), "does not describe"),
        (_change("prune_ratios", {"no.such.group": 0.5}), "does not describe"),
        (_change("prune_ratios", {}), None),
        (_change_groups("layout", {"axis": "x", "folded": False}), "axis: Input should be"),
        (_change_groups("layout", {"axis": 1.5, "folded": False}), "axis: Input should be"),
        (_change_groups("mode", "faster"), "'faster' is not one of compact"),
        (_change("source", {"kind": "pickle"}), "source"),
    ],
)
def test_a_damaged_directory_says_so_in_one_message(gated, tmp_path, damage, message):
    out = save(gated[0], tmp_path / "out")
    damage(out)
    if message is None:
        assert is_gated(load(out))
        return
    with pytest.raises(InputError, match=message) as caught:
        load(out)
    assert "\n" not in str(caught.value)


def test_a_model_of_unknown_origin_is_not_written(tmp_path):
    with pytest.raises(UsageError, match="module:function"):
        save(nn.Linear(2, 2), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


class Mixed(nn.Module):
    """A hidden layer in half precision, another in full, and a constant that no file holds."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16).bfloat16(), nn.Linear(16, 8).bfloat16()
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)
        self.register_buffer("scale", torch.linspace(1, 2, 8), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.down(self.up(x.bfloat16()).relu()).float().tanh() * self.scale
        return self.fc2(self.fc1(h).relu())


def test_every_tensor_keeps_its_own_type(tmp_path):
    import dynprune

    torch.manual_seed(0)
    model, x = Mixed().eval(), torch.randn(2, 5, 8)
    dynprune.apply(model, x, "any")
    wanted = model(x)
    loaded = load(dynprune.save(model, tmp_path / "model"), factory=Mixed)
    assert {k: v.dtype for k, v in loaded.named_parameters()} == {
        k: v.dtype for k, v in model.named_parameters()
    }
    assert torch.equal(loaded(x), wanted)


def test_a_refused_group_of_a_layer_that_runs_twice_does_not_stop_loading(tmp_path):
    import dynprune

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2, self.fc3 = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 16)
            self.fc4 = nn.Linear(16, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.fc1(x).relu()
            return self.fc4(self.fc3(torch.tanh(self.fc2(h) + self.fc2(h.flip(-1)))).relu())

    torch.manual_seed(0)
    model, x = Twice().eval(), torch.randn(2, 5, 8)
    dynprune.apply(model, x, "any")
    assert any("called 2 times" in (plan.reason or "") for plan in attached(model).plans)
    loaded = load(dynprune.save(model, tmp_path / "model"), factory=Twice)
    assert torch.equal(loaded(x), model(x))


def test_a_layer_that_reads_neurons_with_a_tied_weight_is_written(tmp_path):
    import dynprune

    class Tied(nn.Module):
        """Its words are told by the weight that embeds them, right behind a narrower layer."""

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(24, 16), nn.Linear(16, 24, bias=False)
            self.head.weight = self.embed.weight
            self.up, self.out = nn.Linear(16, 32), nn.Linear(32, 16)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.embed(ids)
            x = x + x.mean(1, keepdim=True)  # tokens that never met would not be gated
            return self.head(self.out(self.up(x).relu()))

    torch.manual_seed(0)
    model, ids = Tied().eval(), torch.randint(0, 24, (2, 6))
    dynprune.apply(model, ids, "any")
    assert [plan.mode for plan in attached(model).plans] == ["compact", "compact"]
    loaded = load(dynprune.save(model, tmp_path / "model"), factory=Tied)
    assert loaded.head.weight is loaded.embed.weight
    assert torch.equal(loaded(ids), model(ids))


def test_no_path_of_the_machine_is_written(gated, tmp_path, monkeypatch):
    model, _ = gated
    home = tmp_path / "somebody" / "private"
    (home / "teacher").mkdir(parents=True)
    monkeypatch.setattr("sys.argv", ["dynprune", "apply", str(home / "teacher"), "--secret=xyzzy"])
    for name in (str(home / "teacher"), f"module:factory@{home / 'teacher'}", "C:\\me\\teacher"):
        set_provenance(model, replace(provenance_of(model), name=name))
        out = save(model, home / "out", overwrite=(home / "out").exists())
        for path in out.iterdir():
            content = path.read_bytes()
            assert b"private" not in content, path
            assert b"xyzzy" not in content, path
            assert b"me\\\\teacher" not in content, path
        assert provenance_of(load(out)).name.endswith("teacher")


def test_a_hub_name_is_kept_and_a_path_is_not():
    assert without_place("nvidia/segformer-b0") == "nvidia/segformer-b0"
    assert without_place("../models/teacher/") == "teacher"
    assert without_place("m:f@/data/out") == "m:f@out"
    assert without_place("SegformerModel") == "SegformerModel"


def test_a_fault_of_ours_surfaces_and_a_changed_manifest_is_to_be_written_again(
    gated, tmp_path, monkeypatch
):
    out = save(gated[0], tmp_path / "out")
    assert is_as_written(read_manifest(out))

    def broken(*_args, **_kwargs):
        raise AttributeError("our own")

    monkeypatch.setattr("dynprune.models.storage.inject", broken)
    with pytest.raises(AttributeError, match="our own"):
        load(out)
    _change("name", "another")(out)
    assert not is_as_written(read_manifest(out))
    with pytest.raises(InputError, match="Write it again with dynprune apply"):
        load(out)


def test_a_field_that_another_version_knows_is_named(gated, tmp_path):
    out = save(gated[0], tmp_path / "out")
    record = read_manifest(out)
    record["groups"][0]["config"]["colour"] = "blue"
    (out / "dynprune.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(InputError, match=r"says colour of a GateConfig.*another version"):
        load(out)
