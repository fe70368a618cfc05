"""The Python interface, as its documentation shows it."""

import doctest

import pytest
import torch
import transformers as hf
from torch import nn

import dynprune
from dynprune import api
from dynprune.errors import InputError, UsageError
from dynprune.gate import gates, is_gated
from dynprune.graph import RULES
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


def test_the_interface_takes_less_than_two_seconds_beyond_torch():
    """Of the processor; what one command alone uses is imported by that command."""
    import json
    import subprocess
    import sys

    alone = ["fvcore", "kornia", "matplotlib", "onnx", "openvino", "torch._dynamo", "transformers"]
    code = (
        "import json, sys, time, torch\n"
        "before = time.process_time()\n"
        "import dynprune.api\n"
        "seconds = time.process_time() - before\n"
        f"print(json.dumps([seconds, [n for n in {alone!r} if n in sys.modules]]))"
    )
    program = [sys.executable, "-c", code]
    outputs = [subprocess.run(program, check=True, capture_output=True) for _ in range(2)]
    seconds, loaded = json.loads(outputs[-1].stdout)  # the first one compiles
    assert loaded == []
    assert seconds < 2.0


def test_a_compiled_model_is_gated_in_its_wrapper(tmp_path):
    plain, x = make(), torch.randn(3, 4, 8)
    model = torch.compile(plain, backend="eager")
    dense = model(x)
    assert [plan.mode for plan in dynprune.inspect(model, x).plans] == ["compact"]
    assert dynprune.apply(model, x, parse_recipe(RECIPE)) is model
    pruned = model(x)
    assert torch.equal(pruned, plain(x))
    assert not torch.equal(pruned, dense)
    dynprune.save(model, tmp_path / "student")
    assert torch.equal(dynprune.load(tmp_path / "student", factory=make)(x), pruned)
    dynprune.restore(model)
    assert torch.equal(model(x), dense)


def test_a_scripted_model_is_refused_in_words():
    with pytest.raises(UsageError, match="TorchScript module, whose layers cannot be replaced"):
        dynprune.inspect(torch.jit.script(make()), torch.randn(3, 4, 8))


def test_a_part_of_a_transformers_model_is_loaded_by_its_factory(tmp_path):
    def part() -> nn.Module:
        sizes = {"d_model": 32, "encoder_ffn_dim": 64, "encoder_attention_heads": 4}
        torch.manual_seed(0)
        return hf.BartModel(hf.BartConfig(**sizes, encoder_layers=1, vocab_size=16)).encoder.eval()

    model, call = part(), {"input_ids": torch.randint(3, 16, (2, 6))}
    dynprune.apply(model, call, parse_recipe(RECIPE))
    wanted = run(model, dynprune.Example((), call))
    loaded = dynprune.load(dynprune.save(model, tmp_path / "student"), factory=part)
    assert error(run(loaded, dynprune.Example((), call)), wanted) == 0.0


class OwnPredictor(nn.Module):
    """A predictor that dynprune did not make."""

    def __init__(self, features: int, neurons: int) -> None:
        super().__init__()
        self.map = nn.Linear(features, neurons)
        self.macs = features * neurons

    def forward(self, summary):
        return self.map(summary)


def test_a_predictor_of_ones_own_is_loaded_by_the_same_argument_or_refused(tmp_path):
    x = torch.randn(5, 4, 8)
    recipe = parse_recipe(RECIPE)
    model = dynprune.apply(make(), x, recipe, calibration=[x], predictor=OwnPredictor)
    place = dynprune.save(model, tmp_path / "own")
    with pytest.raises(InputError, match=r"author's own \(tests.test_api:OwnPredictor\)"):
        dynprune.load(place, factory=make)
    loaded = dynprune.load(place, factory=make, predictor=OwnPredictor)
    assert torch.equal(loaded(x), model(x))
    again = dynprune.save(loaded, tmp_path / "again")
    assert torch.equal(dynprune.load(again, factory=make, predictor=OwnPredictor)(x), model(x))
    dense = make()
    assert torch.equal(dynprune.restore(loaded)(x), dense(x))


def test_a_predictor_that_a_file_does_not_need_is_refused(tmp_path):
    x = torch.randn(5, 4, 8)
    place = dynprune.save(dynprune.apply(make(), x, parse_recipe(RECIPE)), tmp_path / "usual")
    with pytest.raises(UsageError, match=r"predictor was given, but the gates of .* dynprune's"):
        dynprune.load(place, factory=make, predictor=OwnPredictor)


def test_what_a_predictor_raises_is_not_taken_for_a_reason_to_refuse_groups():
    def broken(features, neurons):
        raise ZeroDivisionError("in the user's own code")

    model, x = make(), torch.randn(5, 4, 8)
    dense = model(x)
    with pytest.raises(ZeroDivisionError, match="in the user's own code"):
        dynprune.apply(model, x, parse_recipe(RECIPE), predictor=broken)
    assert torch.equal(model(x), dense)
    assert not is_gated(model)


@torch.library.custom_op("dynprune_tests::turned", mutates_args=())
def turned(x: torch.Tensor) -> torch.Tensor:
    return x.flip(-1).relu()


@turned.register_fake
def _(x):
    return torch.empty_like(x)


class Turned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x):
        return self.down(turned(self.up(x)))


def test_a_rule_that_is_not_true_is_found_out_by_running():
    def promise(walk, node):
        return walk.labels(node.args[0])

    model, x, name = Turned().eval(), torch.randn(3, 4, 8), "dynprune_tests::turned"
    (plan,) = dynprune.inspect(model, x, rules={**RULES, name: promise}).plans
    assert plan.group.reason is None  # the graph is believed
    assert plan.reason == "neurons that it skips still change the output"
    (plan,) = dynprune.inspect(model, x).plans
    assert plan.mode == "refused"
    assert name in plan.reason
