"""Recipes by name or file, overrides, and messages that list every error."""

import re
import textwrap

import pytest

from dynprune.errors import InputError, RecipeError
from dynprune.recipe import dump_recipe, load_recipe, parse_recipe, recipe_names, recipe_text

SMALL = textwrap.dedent("""
    schema: dynprune/1
    name: small
    model: {input: [1, 3, 8, 8]}
    apply: {targets: [{kind: ffn}]}
    sparsity: {final: 0.5}
""")
TRAINED = SMALL + textwrap.dedent("""
    data: {crop: [8, 8], classes: 3}
    stages:
      - {name: one, steps: 10, losses: [{type: mse}]}
      - {name: two, steps: 30, losses: [{type: ce}, {type: soft_ce, temperature: 2.0}]}
    optimizer: {lr: 1e-3}
""")


def errors_of(text, *overrides):
    with pytest.raises(RecipeError) as raised:
        parse_recipe(text, overrides, origin="recipe small")
    return [line.strip() for line in str(raised.value).splitlines()[1:]]


YOUR_OWN = ("any", "vit-classification")  # recipes for models of the user's own


@pytest.mark.parametrize("name", recipe_names())
def test_every_built_in_recipe_is_valid_and_carries_its_own_name(name):
    assert load_recipe(name).name == name


@pytest.mark.parametrize("name", recipe_names())
def test_a_dumped_recipe_reads_back_equal(name):
    recipe = load_recipe(name)
    assert parse_recipe(dump_recipe(recipe)) == recipe


@pytest.mark.parametrize("name", [n for n in recipe_names() if not n.startswith(YOUR_OWN)])
def test_a_recipe_for_a_model_can_build_it_without_weights(name):
    model = load_recipe(name).model
    assert model.architecture is not None
    assert model.config is not None
    assert model.config["model_type"]


@pytest.mark.parametrize("name", [n for n in recipe_names() if n.startswith("segformer")])
def test_classes_of_the_data_are_classes_of_the_model(name):
    recipe = load_recipe(name)
    assert recipe.data.classes == recipe.model.config["num_labels"]


def test_the_least_recipe_takes_every_default():
    recipe = parse_recipe(SMALL)
    assert recipe.apply.gate.mode == "value"
    assert recipe.sparsity.schedule.type == "linear"
    assert recipe.runtime.seed == 0
    assert recipe.steps == 0


def test_a_file_comes_before_a_built_in_recipe_of_the_same_name(tmp_path, monkeypatch):
    (tmp_path / "demo").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    assert load_recipe("demo").name == "small"


def test_a_directory_does_not_hide_a_built_in_recipe(tmp_path, monkeypatch):
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_recipe("demo").name == "demo"


def test_an_unknown_name_is_answered_with_the_nearest_one():
    with pytest.raises(RecipeError, match="Did you mean segformer-b2"):
        load_recipe("segfomer-b2")


def test_a_name_like_no_other_is_answered_with_all_names():
    with pytest.raises(RecipeError, match=r"Built-in recipes: any, any-features, demo,"):
        load_recipe("qqq")


def test_a_name_cannot_climb_out_of_the_recipes():
    with pytest.raises(RecipeError, match="neither such a file nor"):
        load_recipe("../recipes/demo")


@pytest.mark.parametrize("name", ["\0", "x" * 5000, ""])
def test_a_name_that_no_file_can_have_is_refused(name):
    with pytest.raises((RecipeError, InputError)):
        load_recipe(name)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(file)


@pytest.mark.parametrize("text", ["", "- a", "word", "3"])
def test_a_document_without_keys_is_no_recipe(text):
    with pytest.raises(RecipeError, match="not keys and values"):
        parse_recipe(text)


def test_all_errors_are_reported_at_once_each_with_its_key():
    lines = errors_of(
        TRAINED,
        "aply.x=1",
        "sparsity.final=hello",
        "stages[1].losses[1].weigth=2",
        "stages.0.losses.0.type=foo",
        "optimizer.lr=-1",
        "runtime.seed=1.5",
        "model.input=[1, a]",
        "apply.targets.1.match='re:('",
        "apply.gate.mode=values",
    )
    assert lines == [
        'model.input[1]: input should be a valid integer, found "a"',
        "apply.targets[1].match: is not a regular expression: missing ), unterminated subpattern "
        "at position 0",
        "apply.gate.mode: input should be 'value' or 'straight_through', found \"values\"",
        'sparsity.final: input should be a valid number, found "hello"',
        'stages[0].losses[0].type: "foo" is none of mse, normalized_mse, cosine, cwd, ce, soft_ce',
        "stages[1].losses[1].weigth: unknown key; did you mean weight?",
        "optimizer.lr: input should be greater than 0, found -1",
        "runtime.seed: input should be a valid integer, found 1.5",
        "aply: unknown key; did you mean apply?",
    ]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("sparsity.final=1.0", "sparsity.final: input should be less than 1, found 1.0"),
        ("sparsity.final='0.5'", 'sparsity.final: input should be a valid number, found "0.5"'),
        ("runtime.seed=true", "runtime.seed: input should be a valid integer, found true"),
        ("schema=dynprune/2", "schema: input should be 'dynprune/1', found \"dynprune/2\""),
        ("name=../x", 'name: string should match pattern .*, found "../x"'),
        ("apply.targets=[]", "apply.targets: tuple should have at least 1 item.*"),
        ("apply.targets.0.match=a", "apply.targets[0]: give either kind or match"),
        ("apply.targets.0.zzz=a", "apply.targets[0].zzz: unknown key; known keys: kind, match,.*"),
        ("data.scale=[2.0, 1.0]", r"data: scale [2.0, 1.0] must be [smallest, largest]"),
        ("data.classes=256", "data: classes=256, but labels are bytes: at most 255"),
        ("data.class_weights=[1.0]", "data: 1 class_weights, but classes=3"),
        ("data.mean=[.nan, 0, 0]", "data.mean[0]: input should be a finite number, found NaN"),
        ("stages.1.name=one", "stages: names must differ, found one, one"),
        ("stages.0.losses.0={}", "stages[0].losses[0].type: is missing"),
        ("stages.0.losses.0=mse", "stages[0].losses[0]: .*"),
        ("optimizer=null", "optimizer: is missing, and stages need it"),
        ("data=null", "data: is missing, and stages need it"),
        ("sparsity.schedule.end_step=41", "sparsity.schedule.end_step: 41 lies behind .*"),
        ("lr_schedule.warmup_steps=40", "lr_schedule.warmup_steps: 40 is not less than .*"),
        ("runtime={batch_size: 5, accumulate: 2}", "runtime: batch_size=5 is not a multiple.*"),
        ("model.source=factory", "model: source: factory needs factory: module:function"),
        ("model.factory=a:b", "model: factory needs source: factory"),
        ("model.architecture=X", "model: config and architecture go together.*"),
        ("model={input: [1, 3], architecture: X, config: {}}", "model: config must name its .*"),
        (
            "rewrite=[fold]",
            "rewrite[0]: input should be 'fold-decoder', 'channels-last' or 'unpack-attention',"
            ' found "fold"',
        ),
    ],
)
def test_an_invalid_value_is_named_by_its_key(override, line):
    (found,) = errors_of(TRAINED, override)
    expected = re.escape(line).replace(r"\.\*", ".*")
    assert re.fullmatch(expected, found), found


def test_a_missing_key_is_named():
    assert "sparsity: is missing" in errors_of("schema: dynprune/1")


def test_overrides_apply_in_order_and_before_validation():
    recipe = parse_recipe(TRAINED, ["sparsity.final=2", "sparsity.final=0.25"])
    assert recipe.sparsity.final == 0.25


@pytest.mark.parametrize("path", ["stages.1.losses.0.weight", "stages[1].losses[0].weight"])
def test_list_items_are_reached_by_index(path):
    recipe = parse_recipe(TRAINED, [f"{path}=0.5"])
    assert recipe.stages[1].losses[0].weight == 0.5
    assert recipe.stages[1].losses[1].weight == 1.0


def test_an_override_makes_sections_that_are_not_there():
    recipe = parse_recipe(SMALL, ["apply.gate.align=16", "apply.targets.1.kind=v"])
    assert recipe.apply.gate.align == 16
    assert [target.kind for target in recipe.apply.targets] == ["ffn", "v"]


def test_an_empty_value_is_null():
    assert load_recipe("segformer-b0", ["sparsity.schedule.end_step="]).steps == 160_000


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sparsity.final", "is not key.path=value"),
        ("=1", "is not key.path=value"),
        ("stages.9.steps=1", "stages is a list of 2; '9' must be an index from 0 to 2"),
        ("stages.x=1", "must be an index"),
        ("name.x=1", 'name holds "small", not keys'),
        ("name=!!python/name:os.system ''", "the tag .* is refused"),
    ],
)
def test_an_override_that_cannot_be_meant_is_refused(override, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe(TRAINED, [override])


def test_a_recipe_cannot_be_changed():
    recipe = parse_recipe(SMALL)
    with pytest.raises(ValueError, match="frozen"):
        recipe.name = "other"


def test_comments_survive_in_the_text_of_a_recipe():
    assert "# " in recipe_text("segformer-b2")


def test_values_of_label_maps_are_whole_numbers_of_a_byte():
    recipe = load_recipe("any", ["data.label_map={255: 1, 0: 0}", "data.ignore_index=[0, 7]"])
    assert recipe.data.label_map == {255: 1, 0: 0}
    assert recipe.data.ignore_index == (0, 7)
    assert parse_recipe(dump_recipe(recipe)) == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.label_map={256: 1}", r"data\.label_map\.256: .* less than or equal to 255"),
        ("data.label_map={road: 1}", r"data\.label_map\.road: .* valid integer"),
        ("data.label_map={0: 300}", r"data\.label_map\.0: .* less than or equal to 255"),
        ("data.ignore_index=-100", r"data\.ignore_index: .* greater than or equal to 0"),
        ("data.ignore_index=[0, 300]", r"data\.ignore_index\[1\]: .* less than or equal to 255"),
        ("data.resize=half", "data.resize: input should be 'full', found \"half\""),
        ("data={label_map: {1: 0}, reduce_labels: true}", "both say what values mean"),
    ],
)
def test_what_labels_cannot_hold_is_refused(override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("any", [override])


def test_training_needs_a_crop_and_nothing_else_does():
    load_recipe("any", ["data={}"])
    with pytest.raises(RecipeError, match=r"data\.crop: is missing, and stages need it"):
        load_recipe("demo", ["data={classes: 8}"])
