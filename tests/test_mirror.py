"""The tests mirror the source tree, and no test file leans on another one."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = "tests/cli/test_commands.py and test_mistakes.py run every command from outside"
RULES = "tests/graph/rules/test_rules.py proves every rule by running the operation itself"
TASKS = "tests/cli/test_tasks.py takes every task the whole way, and refuses what is none"
LAWS = "the laws of tests/gate/test_zoo.py and test_inject.py run it in every model of the zoo"
DEFECTS = "tests/laws/test_table.py holds models to its laws, each with a defect"
GROUPS = "tests/graph/test_groups.py and test_adversaries.py prove what it finds"
DECODERS = "tests/rewrite/test_surgery.py folds and unfolds every head through it"
EXPERTS = "tests/cli/test_experts.py applies, checks, exports and reports experts"
SCHEMA = "tests/recipe/test_load.py and test_schema.py read and refuse recipes through it"

# Modules without a test file of their own, and where what they do is proven until they have one.
# The list shrinks.
INT8 = "tests/export/test_int8.py quantises by it and reads what ran"
ELSEWHERE = {
    "cli/apply.py": COMMANDS,
    "cli/consolidate.py": EXPERTS,
    "cli/distill.py": COMMANDS,
    "cli/env.py": COMMANDS,
    "cli/evaluate.py": COMMANDS,
    "cli/inspect.py": COMMANDS,
    "cli/options.py": COMMANDS,
    "cli/predict.py": COMMANDS,
    "cli/recipe.py": COMMANDS,
    "cli/report.py": COMMANDS,
    "cli/subject.py": COMMANDS,
    "cli/work.py": TASKS,
    "dynprune/distill/plan.py": "tests/distill/test_trainer.py and test_step.py carry plans out",
    "dynprune/distill/run.py": "tests/distill/test_trainer.py runs it",
    "dynprune/errors.py": "declarations; tests/cli/test_mistakes.py checks the exit codes",
    "dynprune/example.py": "every test of a model calls it; its own doctests run in test_api.py",
    "dynprune/export/passes/nodes.py": "every pass in tests/export/passes is written with it",
    "dynprune/export/engine_file.py": "tests/export/test_facts.py opens every kind of file",
    "dynprune/export/precision.py": INT8,
    "dynprune/export/products.py": INT8,
    "dynprune/export/quantiser.py": INT8,
    "dynprune/export/quantiser_process.py": INT8,
    "dynprune/export/record.py": INT8,
    "dynprune/pipeline/int8.py": "tests/cli/test_export.py exports by it",
    "dynprune/export/verify.py": "tests/export/test_onnx.py and test_openvino.py check through it",
    "dynprune/files.py": "tests/models/test_storage.py and tests/reliability write through it",
    "dynprune/graph/evidence.py": "tests/graph/test_causality.py judges every layer by it",
    "dynprune/graph/fallback.py": "tests/graph/test_trace.py records runs with it",
    "dynprune/gate/expert_record.py": "tests/gate/test_experts.py writes and reads records",
    "dynprune/gate/expert_rows.py": "tests/gate/test_experts.py keeps shared rows once",
    "dynprune/gate/forms.py": EXPERTS,
    "dynprune/gate/router.py": "tests/gate/test_experts.py routes",
    "dynprune/laws/experts.py": EXPERTS,
    "dynprune/measure/expert_use.py": EXPERTS,
    "dynprune/pipeline/consolidate.py": EXPERTS,
    "dynprune/pipeline/experts.py": EXPERTS,
    "dynprune/planning/expert_draft.py": "tests/planning/test_experts.py fits drafts",
    "dynprune/planning/expert_seats.py": "tests/planning/test_experts.py fits them in sequence",
    "dynprune/export/passes/groups.py": "tests/export/test_experts.py writes it into files",
    "dynprune/gate/route.py": "tests/gate/test_experts.py and tests/planning/test_experts.py route",
    "dynprune/gate/equation.py": "tests/gate/test_products.py narrows Einstein sums by it",
    "dynprune/gate/proof.py": "tests/gate/test_verify.py proves with it",
    "dynprune/gate/slots.py": "tests/gate/test_products.py narrows every form of attention by it",
    "dynprune/graph/partition.py": GROUPS,
    "dynprune/graph/neurons.py": GROUPS,
    "dynprune/graph/reasons.py": GROUPS,
    "dynprune/graph/rules/layers.py": RULES,
    "dynprune/graph/rules/moves.py": RULES,
    "dynprune/graph/rules/pointwise.py": RULES,
    "dynprune/graph/rules/products.py": RULES,
    "dynprune/graph/rules/reductions.py": RULES,
    "dynprune/graph/rules/table.py": RULES,
    "dynprune/graph/slots.py": "tests/gate/test_products.py narrows every form of attention by it",
    "dynprune/graph/walk.py": GROUPS,
    "dynprune/host/imports.py": "tests/models/test_load.py and tests/data/test_calls.py import",
    "dynprune/host/modes.py": "tests/test_api.py proves that a model's modes stay as they were",
    "dynprune/host/outputs.py": "tests/gate/test_verify.py compares results with it",
    "dynprune/laws/batches.py": DEFECTS,
    "dynprune/laws/subject.py": DEFECTS,
    "dynprune/laws/wrapping.py": DEFECTS,
    "dynprune/models/manifest.py": "tests/models/test_storage.py and tests/reliability damage it",
    "dynprune/models/provenance.py": "tests/models/test_storage.py and test_card.py read it back",
    "dynprune/models/source.py": "tests/models/test_load.py builds every kind of source",
    "dynprune/pipeline/inspect.py": "tests/test_api.py and tests/cli/test_commands.py inspect",
    "dynprune/pipeline/tasks.py": TASKS,
    "dynprune/pipeline/train.py": "tests/cli/test_commands.py and tests/reliability train with it",
    "dynprune/recipe/explain.py": SCHEMA,
    "dynprune/recipe/pruning.py": SCHEMA,
    "dynprune/recipe/training.py": SCHEMA,
    "dynprune/report/published.py": "figures of a paper; tests/report/test_tradeoff.py draws them",
    "dynprune/rewrite/cuts.py": "tests/gate/test_fixed.py cuts every model of the zoo",
    "dynprune/rewrite/decoder/fold.py": DECODERS,
    "dynprune/rewrite/decoder/folded.py": DECODERS,
    "dynprune/rewrite/decoder/match.py": DECODERS,
    "dynprune/rewrite/decoder/structure.py": DECODERS,
    "dynprune/rewrite/decoder/unfold.py": DECODERS,
    "dynprune/rewrite/proof.py": "every rewrite that tests/rewrite makes is proven by it",
    "dynprune/rewrite/record.py": "tests/rewrite/test_surgery.py writes and reads records",
    "dynprune/rewrite/widen.py": "tests/cli/test_fixed.py reports dense sizes with it",
    "dynprune/tasks/features.py": TASKS,
    "dynprune/tasks/names.py": TASKS,
    "dynprune/tasks/segmentation.py": COMMANDS,
    "dynprune/tasks/task.py": TASKS,
    "dynprune/tasks/text.py": TASKS,
    "dynprune/tasks/views.py": "tests/report/test_panels.py shows pictures through it",
    "dynprune/tasks/written.py": TASKS,
}


def files(*folders):
    found = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(p.relative_to(ROOT) for p in found if "__pycache__" not in p.parts)


MODULES = [path for path in files("dynprune", "cli") if path.name != "__init__.py"]
TESTS = [path for path in files("tests") if path.name.startswith("test_")]


def mirror_of(path):
    """Where the tests of a module are."""
    parts = path.parts[1:] if path.parts[0] == "dynprune" else path.parts
    return Path("tests", *parts[:-1], f"test_{parts[-1]}")


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_a_module_has_its_test_file_or_says_where_it_is_tested(path):
    assert (ROOT / mirror_of(path)).is_file() != (path.as_posix() in ELSEWHERE)


def test_no_place_is_given_for_a_module_that_is_not_there():
    assert not set(ELSEWHERE) - {path.as_posix() for path in MODULES}


@pytest.mark.parametrize("path", TESTS, ids=str)
def test_a_test_file_imports_no_other_one(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    named = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    named += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    assert not [name for name in named if name.rpartition(".")[2].startswith("test_")]
