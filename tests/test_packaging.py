"""A wheel, built from the sources and installed outside of them, is the whole product."""

import importlib.metadata
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

from dynprune.recipe import recipe_names

ROOT = Path(__file__).parents[1]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "dynprune", "cli", "recipes")

pytest.importorskip("setuptools", reason="a wheel is built without the network by setuptools here")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "-w", str(source / "w")]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *flags, str(source)], check=True)
    return next((source / "w").glob("*.whl"))


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory):
    """A virtualenv with the wheel in it; its dependencies are borrowed from this one."""
    place = tmp_path_factory.mktemp("installed") / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    python = place / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*command, "--no-deps", "--no-index", str(wheel)], check=True)
    (packages,) = place.glob("lib/python*/site-packages")
    # A path in a .pth file is not searched for .pth files: the editable install stays out.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place


@pytest.fixture
def run(installed, tmp_path):
    """Run a program of the virtualenv in an empty directory."""

    def call(*arguments):
        command = [str(installed / "bin" / arguments[0]), *arguments[1:]]
        environment = {**os.environ, "PYTHONPATH": ""}
        result = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return call


def test_the_wheel_holds_every_file_that_is_not_code(wheel):
    names = set(ZipFile(wheel).namelist())
    recipes = {f"dynprune/recipes/{name}.yaml" for name in recipe_names()}
    assert recipes | {"dynprune/py.typed", "dynprune/report/page.html.j2"} <= names
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "dynprune").rglob("*.py")}
    assert modules <= names
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "docs"))]


def test_it_runs_from_where_it_is_installed(run, installed):
    program = "import dynprune, dynprune.cli.main as m; print(dynprune.__file__); print(m.__file__)"
    assert all(str(installed) in line for line in run("python", "-c", program).splitlines())


def test_the_command_helps_and_knows_its_version(run):
    assert "distill" in run("dynprune", "--help")
    assert run("dynprune", "--version").split() == ["dynprune", VERSION]


def test_its_recipes_are_in_it_and_are_valid(run):
    listed = json.loads(run("dynprune", "recipe", "list", "--json"))
    assert sorted(recipe["name"] for recipe in listed["recipes"]) == recipe_names()
    run("dynprune", "recipe", "validate", "segformer-b2")


def test_help_takes_less_than_a_second_of_the_processor(run):
    run("dynprune", "--help")  # compiles the modules
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run("dynprune", "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_help_imports_no_torch(run):
    program = (
        "import sys; from dynprune.cli.main import app; print(*sorted(sys.modules), sep='\\n')"
    )
    loaded = set(run("python", "-c", program).split())
    assert not loaded & {"torch", "transformers", "matplotlib", "numpy", "jinja2"}


def test_the_extras_that_are_documented_exist():
    extras = importlib.metadata.metadata("dynprune").get_all("Provides-Extra")
    assert {"onnx", "openvino", "demo", "tensorboard", "docs", "dev"} <= set(extras)


def test_the_version_is_the_same_wherever_it_is_written():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["version"] == VERSION
    first = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text("utf-8"), flags=re.M)
    assert first[1] == VERSION
    minor = VERSION.rpartition(".")[0]
    assert f"| {minor} | yes |" in (ROOT / "SECURITY.md").read_text("utf-8")
