"""The shape of the source tree, enforced: who imports whom, what is banned, module length."""

import ast
import importlib
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the bottom to the top; a module may import what stands before it, and its own room.
ORDER = [
    "errors",
    "example",
    "files",
    "host",
    "graph",
    "rewrite",
    "gate",
    "data",
    "tasks",
    "recipes",
    "recipe",
    "models",
    "measure",
    "planning",
    "distill",
    "export",
    "laws",
    "report",
    "pipeline",
    "api",
    "demo",
    "__init__",
    "cli",
]
RANK = {name: place for place, name in enumerate(ORDER)}
FLAT = {"__init__", "api", "errors", "example", "files"}
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "core", "base"}
BANNED_IMPORTS = {"torchvision", "timm", "pickle", "cloudpickle", "dill", "shelve", "marshal"}
TERMINAL = {"typer", "rich", "click"}
LONGEST = 400

MODULES = sorted(
    path
    for folder in ("dynprune", "cli", "recipes")
    for path in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in path.parts
)
PYTHON = MODULES + sorted(
    path
    for folder in ("tests", "benchmarks", "docs")
    for path in (ROOT / folder).rglob("*.py")
    if "__pycache__" not in path.parts
)


def show(path):
    return str(path.relative_to(ROOT))


@lru_cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def name_of(path):
    """The dotted name under which a source file is imported."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] in ("cli", "recipes"):
        parts.insert(0, "dynprune")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_by(path):
    """Every module that a file imports from, wherever in it, and the names that it takes of it."""
    package = name_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module, tuple(alias.name for alias in node.names)


def imports_of(path):
    """Absolute dotted names of everything that a file imports."""
    for module, names in imported_by(path):
        yield module
        yield from (f"{module}.{name}" for name in names)


def rank(name):
    """Place of a dynprune module in the order; None for what is not one."""
    package, *parts = name.split(".")
    if package != "dynprune" or file_of(name) is None:
        return None
    return RANK.get(parts[0] if parts else "__init__")


def file_of(name):
    """The file that holds a dotted name of ours; None where no module is called so."""
    package, *parts = name.split(".")
    if package != "dynprune":
        return None
    folder = ROOT if parts[:1] in (["cli"], ["recipes"]) else ROOT / "dynprune"
    place = folder.joinpath(*parts)
    found = [place / "__init__.py", place.with_suffix(".py")] if parts else [place / "__init__.py"]
    return next((path for path in found if path.is_file()), None)


def files_imported_by(path):
    """The files of ours that a file imports, lazily and for types too.

    A module's package is run before it; since a package imports its modules, only what a statement
    asks of the package itself counts.
    """
    for module, names in imported_by(path):
        home = file_of(module)
        if home is None:
            continue
        listed = names_in_all(home)
        modules = {name: file_of(f"{module}.{name}") for name in names if name not in listed}
        found = {file for file in modules.values() if file is not None}
        if not names or len(found) < len(names):
            found.add(home)
        yield from found - {path}


@lru_cache
def names_in_all(path):
    """What a file lists in `__all__`."""
    for node in [] if path is None else tree_of(path).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets):
            return tuple(ast.literal_eval(node.value))
    return ()


def circles(edges):
    """Every file from which a way leads back to itself."""

    def reached(start):
        seen, waiting = set(), list(edges[start])
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                waiting += edges[node]
        return seen

    return sorted(show(path) for path in edges if path in reached(path))


@pytest.mark.parametrize("path", MODULES, ids=show)
def test_every_module_has_a_place_in_the_order_of_imports(path):
    assert rank(name_of(path)) is not None


@pytest.mark.parametrize("path", MODULES, ids=show)
def test_imports_flow_one_way(path):
    own = rank(name_of(path))
    found = {name: rank(name) for name in imports_of(path) if name != "dynprune"}
    assert not [name for name, place in found.items() if place is not None and place > own]


def test_no_two_files_import_each_other_by_any_way_round():
    edges = {path: sorted(set(files_imported_by(path))) for path in MODULES}
    assert sum(map(len, edges.values())) > len(MODULES)
    assert not circles(edges)


def test_a_circle_would_be_found():
    one, two, three = (ROOT / name for name in ("one", "two", "three"))
    assert circles({one: [two], two: [three], three: [two]}) == ["three", "two"]


def test_every_line_of_the_order_is_a_room_and_few_modules_lie_flat():
    rooms = {name_of(path).split(".")[1] for path in MODULES if name_of(path) != "dynprune"}
    assert rooms | {"__init__"} == set(ORDER)
    assert len(ORDER) == len(RANK)
    assert {path.stem for path in (ROOT / "dynprune").glob("*.py")} == FLAT


@pytest.mark.parametrize("path", MODULES, ids=show)
def test_only_the_command_line_imports_typer_and_rich(path):
    if not name_of(path).startswith("dynprune.cli"):
        assert not {found.split(".")[0] for found in imports_of(path)} & TERMINAL


@pytest.mark.parametrize("path", PYTHON, ids=show)
def test_no_module_imports_what_is_banned(path):
    assert not {found.split(".")[0] for found in imports_of(path)} & BANNED_IMPORTS


@pytest.mark.parametrize("path", MODULES, ids=show)
def test_nothing_is_unpickled_evaluated_or_executed(path):
    calls = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            calls.add(ast.unparse(node.func))
    assert not calls & {"eval", "exec", "compile", "__import__", "torch.load", "torch.save"}


@pytest.mark.parametrize("path", MODULES, ids=show)
def test_the_library_never_prints(path):
    calls = [n for n in ast.walk(tree_of(path)) if isinstance(n, ast.Call)]
    if not name_of(path).startswith("dynprune.cli"):
        assert not [n.lineno for n in calls if ast.unparse(n.func) == "print"]


@pytest.mark.parametrize("path", PYTHON, ids=show)
def test_no_module_is_named_for_nothing(path):
    assert path.stem not in BANNED_NAMES
    assert not set(path.relative_to(ROOT).parts) & BANNED_NAMES


@pytest.mark.parametrize("path", MODULES, ids=show)
def test_every_module_states_its_idea_and_is_not_too_long(path):
    docstring = ast.get_docstring(tree_of(path))
    assert docstring
    assert docstring.splitlines()[0].endswith((".", ":"))
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


PACKAGES = [path for path in MODULES if path.name == "__init__.py"]
EXPORTING = [path for path in MODULES if "__all__" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", PACKAGES, ids=show)
def test_a_package_only_reexports_and_lists_all_that_it_imports(path):
    body = tree_of(path).body[1:]  # after the docstring
    imports = [n for n in body if isinstance(n, ast.ImportFrom)]
    imported = [alias.asname or alias.name for node in imports for alias in node.names]
    if path == ROOT / "dynprune" / "__init__.py":  # imports when it is asked: see its own tests
        return
    rest = [ast.unparse(n).partition(" ")[0] for n in body if not isinstance(n, ast.ImportFrom)]
    assert rest == (["__all__"] if imports else [])
    assert sorted(imported) == sorted(names_in_all(path))


@pytest.mark.parametrize("path", EXPORTING, ids=show)
def test_every_listed_name_exists_and_the_list_is_sorted(path):
    listed = list(names_in_all(path))
    assert len(listed) == len(set(listed))
    # As ruff sorts them: constants, then classes, then functions.
    assert listed == sorted(listed, key=lambda n: (not n.isupper(), not n[0].isupper(), n))
    module = importlib.import_module(name_of(path))
    assert not [name for name in listed if not hasattr(module, name)]


MOST_PARAMETERS, MOST_LINES = 8, 60
COMMAND = "its options are the parameters of a command"
#: Public functions with more parameters, and why; the list only shrinks.
MANY_PARAMETERS = {
    "cli/apply.py:run": COMMAND,
    "cli/check.py:run": COMMAND,
    "cli/distill.py:run": COMMAND,
    "cli/evaluate.py:run": COMMAND,
    "cli/consolidate.py:run": COMMAND,
    "cli/export.py:run": COMMAND,
    "cli/inspect.py:run": COMMAND,
    "cli/predict.py:run": COMMAND,
    "cli/report.py:flops": COMMAND,
    "cli/report_latency.py:run": COMMAND,
    "cli/report_neurons.py:run": COMMAND,
    "cli/report_page.py:run": COMMAND,
    "dynprune/data/sampling.py:TrainingBatches.__init__": "augmentation has no plan yet",
    "dynprune/data/sampling.py:training_batch": "augmentation has no plan yet",
    "dynprune/gate/neuron_gate.py:NeuronGate.__init__": "sizes, device and dtype, as in torch",
    "dynprune/pipeline/train.py:distill": "output, resume, only and device are not one thing yet",
    "dynprune/pipeline/train.py:learn": "output, resume, only and device are not one thing yet",
}


#: Public functions with more lines, and why; the list only shrinks.
MANY_LINES = {"cli/distill.py:run": "models, data and rules are opened in one place"}


def public_functions(path):
    """Every public function and method of a file, and constructors, by its dotted name."""

    def found(body, prefix=""):
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from found(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.FunctionDef) and (
                node.name == "__init__" or not node.name.startswith("_")
            ):
                yield f"{show(path)}:{prefix}{node.name}", node

    return found(tree_of(path).body)


def parameters_of(function):
    listed = function.args
    names = [arg.arg for arg in (*listed.posonlyargs, *listed.args, *listed.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


def lines_of_code(path, function):
    """The lines of a function's body that are neither empty, nor a comment, nor its docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    if not body:
        return 0
    lines = path.read_text(encoding="utf-8").splitlines()[body[0].lineno - 1 : function.end_lineno]
    return sum(1 for line in lines if line.strip() and not line.strip().startswith("#"))


@pytest.mark.parametrize("path", MODULES, ids=show)
def test_no_public_function_has_many_parameters_or_lines(path):
    functions = dict(public_functions(path))
    many = {name for name, node in functions.items() if len(parameters_of(node)) > MOST_PARAMETERS}
    assert not many - set(MANY_PARAMETERS)
    long = {name for name, node in functions.items() if lines_of_code(path, node) > MOST_LINES}
    assert not long - set(MANY_LINES)


def test_a_function_that_was_mended_leaves_the_list():
    functions = dict(pair for path in MODULES for pair in public_functions(path))
    found = {n for n in MANY_PARAMETERS if n in functions and len(parameters_of(functions[n])) > 8}
    assert found == set(MANY_PARAMETERS)
