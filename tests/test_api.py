"""The Python interface, as its documentation shows it."""

import doctest

import pytest
import torch
from torch import nn

import dynprune
from dynprune import api
from dynprune.errors import InputError, UsageError
from dynprune.gate import gates, is_gated
from dynprune.recipe import parse_recipe
from tests.gate.zoo_laws import error, run

RECIPE = """
schema: dynprune/1
name: half
model: {source: factory, factory: 'somewhere:make', input: [1, 4, 8]}
apply: {targets: [{kind: ffn}], gate: {align: 1}}
sparsity: {final: 0.5}
"""


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)).eval()


def test_the_examples_in_the_docstrings_are_true():
    assert doctest.testmod(api).attempted > 0
    assert doctest.testmod(api).failed == 0


def test_a_model_of_ones_own_goes_through_the_whole_circle(tmp_path):
    model, x = make(), torch.randn(3, 4, 8)
    dense = run(model, dynprune.Example((x,)))
    recipe = parse_recipe(RECIPE)
    student = dynprune.apply(model, x, recipe, calibration=[x, -x], inplace=False)
    assert not is_gated(model)
    (gate,) = gates(student).values()
    assert gate.kept == 16
    pruned = run(student, dynprune.Example((x,)))
    assert 0 < error(pruned, dense) < 1
    dynprune.save(student, tmp_path / "student")
    with pytest.raises(InputError, match="never run"):
        dynprune.load(tmp_path / "student")
    again = dynprune.load(tmp_path / "student", factory=make)
    assert error(run(again, dynprune.Example((x,))), pruned) == 0.0
    assert error(run(dynprune.restore(again), dynprune.Example((x,))), dense) == 0.0


def test_calls_are_given_as_a_tensor_a_tuple_or_a_mapping():
    x = torch.randn(2, 4, 8)
    for call in (x, (x,), {"input": x}, dynprune.Example((x,))):
        assert [p.mode for p in dynprune.inspect(make(), call).plans] == ["compact"]


def test_apply_without_a_recipe_says_what_is_missing():
    with pytest.raises(UsageError, match="needs a recipe"):
        dynprune.apply(make(), torch.randn(1, 8), None)  # type: ignore[arg-type]


def test_importing_the_package_imports_no_torch():
    import subprocess
    import sys

    code = "import sys, dynprune; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
