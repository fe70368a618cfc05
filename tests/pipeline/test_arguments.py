"""What a recipe's sections become for the modules that do the work."""

import pytest
import torch

from dynprune.errors import NoMatchError, RecipeError
from dynprune.graph.neurons import Channels, NeuronGroup
from dynprune.pipeline.arguments import (
    batch_arguments,
    gate_configs,
    model_arguments,
    text_arguments,
    training_arguments,
)
from dynprune.recipe import load_recipe, parse_recipe, recipe_names

TEXT = """
schema: dynprune/1
name: small
model: {input: [1, 3, 8, 8]}
apply: {targets: [{kind: ffn}, {kind: v}]}
sparsity: {final: 0.5}
"""


def group(name, kind):
    producer = Channels(name, torch.arange(8)[:, None], 8)
    return NeuronGroup(f"{name}[{kind}]", kind, (producer,), (), (), 8)


GROUPS = [
    group(f"blocks.{i}.{name}", kind)
    for i in (0, 1)
    for name, kind in (("q", "qk"), ("v", "v"), ("fc1", "ffn"))
]


def chosen(*overrides):
    return gate_configs(parse_recipe(TEXT, overrides), GROUPS)


def test_targets_choose_by_structure():
    assert list(chosen()) == [
        "blocks.0.v[v]",
        "blocks.0.fc1[ffn]",
        "blocks.1.v[v]",
        "blocks.1.fc1[ffn]",
    ]


@pytest.mark.parametrize("pattern", ["re:.*fc1", r"re:blocks\.\d\.fc1\[ffn\]", "re:blocks.*ffn."])
def test_targets_choose_by_a_pattern_for_the_whole_name(pattern):
    found = chosen(f"apply.targets=[{{match: '{pattern}'}}]")
    assert list(found) == ["blocks.0.fc1[ffn]", "blocks.1.fc1[ffn]"]


def test_a_pattern_that_matches_a_part_of_the_name_matches_nothing():
    with pytest.raises(NoMatchError, match=r"apply.targets\[0\]: re:fc1"):
        chosen("apply.targets=[{match: 're:fc1'}]")


def test_a_name_chooses_one_group():
    assert list(chosen("apply.targets=[{match: blocks.1.q}]")) == ["blocks.1.q[qk]"]


def test_ignored_groups_are_left_out():
    assert list(chosen(r"apply.ignore=['re:blocks\.0\..*']")) == [
        "blocks.1.v[v]",
        "blocks.1.fc1[ffn]",
    ]


def test_every_pattern_that_matches_nothing_is_reported():
    with pytest.raises(NoMatchError, match="6 groups") as raised:
        chosen("apply.ignore=[typo]", "apply.targets=[{kind: ffn}, {match: 're:x'}]")
    assert "apply.ignore[0]: typo" in str(raised.value)
    assert "apply.targets[1]: re:x" in str(raised.value)
    assert raised.value.exit_code == 3


def test_a_kind_that_the_model_has_not_is_reported():
    with pytest.raises(NoMatchError, match="kind qk"):
        gate_configs(parse_recipe(TEXT, ["apply.targets=[{kind: qk}]"]), GROUPS[1:3])


def test_a_model_without_groups_says_so():
    with pytest.raises(NoMatchError, match="no neuron groups at all"):
        gate_configs(parse_recipe(TEXT), [])


def test_the_first_target_that_matches_decides_the_keep_ratio():
    configs = chosen(
        "apply.targets=[{match: blocks.0.fc1, keep_ratio: 0.9}, {kind: ffn, keep_ratio: 0.2}]"
    )
    assert configs["blocks.0.fc1[ffn]"].prune_ratio == pytest.approx(0.1)
    assert configs["blocks.1.fc1[ffn]"].prune_ratio == pytest.approx(0.8)


def test_without_a_keep_ratio_the_recipes_sparsity_holds():
    assert {config.prune_ratio for config in chosen().values()} == {0.5}


def test_every_field_of_the_gate_section_arrives():
    (config, *_) = chosen(
        "apply.gate={mode: straight_through, hidden_ratio: 0.25, hidden: 24, align: 4, "
        "input: preactivation, pool: mean-max, compensation: zero, order: prefix}"
    ).values()
    assert config.mode == "straight_through"
    assert (config.hidden_ratio, config.hidden, config.align) == (0.25, 24, 4)
    assert (config.source, config.pool) == ("preactivation", "mean-max")
    assert (config.compensation, config.order) == ("zero", "prefix")


def test_the_model_section_becomes_arguments_of_the_loader():
    arguments = model_arguments(parse_recipe(TEXT, ["runtime.seed=7"]))
    assert arguments == {
        "architecture": None,
        "config": None,
        "input_shape": (1, 3, 8, 8),
        "seed": 7,
    }


@pytest.mark.parametrize(
    "name", [n for n in recipe_names() if (d := load_recipe(n).data) and d.crop]
)
def test_every_recipe_that_trains_on_pictures_is_built(name):
    recipe = load_recipe(name)
    training = training_arguments(recipe)
    assert sum(stage.steps for stage in training["stages"]) == recipe.steps
    assert training["seed"] == batch_arguments(recipe)["seed"] == recipe.runtime.seed


def test_stages_losses_and_schedules_arrive():
    recipe = load_recipe(
        "segformer-b2",
        ["stages.1.losses.1.temperature=2.0", "runtime.ema=0.9", "optimizer.gate_lr_factor=10.0"],
    )
    training = training_arguments(recipe, device="cpu")
    features, logits = training["stages"]
    assert [(term.type, term.on) for term in features.losses] == [("mse", "encoder_stages")]
    assert [(term.type, term.temperature) for term in logits.losses] == [
        ("ce", 1.0),
        ("soft_ce", 2.0),
    ]
    assert training["sparsity"].fraction(40_000, recipe.steps) == 0.5
    assert training["learning_rate"].factor(recipe.steps // 2, recipe.steps) == 0.5
    assert training["optimizer"].gate_lr_factor == 10.0
    assert (training["execution"].ema, training["execution"].device) == (0.9, "cpu")


def test_a_recipe_without_stages_cannot_be_trained():
    with pytest.raises(RecipeError, match="no stages to train"):
        training_arguments(parse_recipe(TEXT))


def test_a_recipe_without_data_makes_no_batches():
    with pytest.raises(RecipeError, match="no data section"):
        batch_arguments(parse_recipe(TEXT))


def test_a_recipe_for_text_is_built_without_pictures_and_judged_by_cosine():
    recipe = load_recipe("minilm")
    training = training_arguments(recipe)
    assert sum(stage.steps for stage in training["stages"]) == recipe.steps
    on = [[term.on for term in stage.losses] for stage in training["stages"]]
    assert on == [["encoder_stages", "embedding"], ["embedding"]]
    assert training["reporting"].metric == "cosine"
    assert text_arguments(recipe) == {"batch_size": 32, "seed": 0}
    with pytest.raises(RecipeError, match="no data section"):
        batch_arguments(recipe)
    with pytest.raises(RecipeError, match="no text section"):
        text_arguments(load_recipe("demo"))
