"""A directory that an earlier dynprune wrote still loads, and computes what it computed then."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

import dynprune
from dynprune.gate import attached, gates
from dynprune.models import provenance_of

# A tiny SegFormer, gated at 0.5: four layers lost type III neurons, its decoder is folded.
WRITTEN = Path(__file__).parents[1] / "fixtures" / "gated-segformer"


def recorded():
    """What it was called on, and the logits that it then gave."""
    return load_file(WRITTEN / "recorded.safetensors")


def test_it_loads_and_computes_the_recorded_logits():
    then = recorded()
    model = dynprune.load(WRITTEN)
    with torch.no_grad():
        logits = model(then["input"]).logits
    # Float32 sums may run in another order on another processor.
    assert (logits - then["logits"]).abs().max() <= 1e-5 * then["logits"].abs().max()


def test_its_rewrites_and_its_gates_are_those_of_its_manifest():
    manifest = json.loads((WRITTEN / "dynprune.json").read_text())
    model = dynprune.load(WRITTEN)
    known = [record.to_json() for record in provenance_of(model).rewrites]
    assert known == manifest["rewrites"]
    assert {"drop-neurons", "fold-decoder"} <= {record["name"] for record in known}
    assert [plan.mode for plan in attached(model).plans] == [
        group["mode"] for group in manifest["groups"]
    ]
    assert {name: gate.prune_ratio for name, gate in gates(model).items()} == manifest[
        "prune_ratios"
    ]


def test_the_recorded_logits_need_the_gates():
    then = recorded()
    model = dynprune.load(WRITTEN)
    for gate in gates(model).values():
        gate.set_prune_ratio(0.0)
    with torch.no_grad():
        dense = model(then["input"]).logits
    assert (dense - then["logits"]).abs().max() > 1e-3 * then["logits"].abs().max()
