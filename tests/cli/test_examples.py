"""The examples below every command's help are commands that the parser takes."""

import shlex

import pytest
import typer
from dynprune.cli.examples import EXAMPLES, START
from dynprune.cli.main import app

GROUP = typer.main.get_command(app)
STARTED = [line.strip().split("   ")[0] for line in START.splitlines() if "dynprune" in line]


def verb_of(words):
    """Return the command that words name, and what is left for it."""
    command, words = GROUP.commands[words[0]], words[1:]
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize(
    "example", [*(line for lines in EXAMPLES.values() for line in lines), *STARTED]
)
def test_an_example_parses(example):
    name, *words = shlex.split(example)
    command, rest = verb_of(words)
    assert name == "dynprune"
    command.make_context(words[0], rest)  # raises where an option or an argument is wrong


@pytest.mark.parametrize("verb", EXAMPLES)
def test_the_examples_of_a_command_are_of_that_command(verb):
    assert all(line.startswith(f"dynprune {verb}") for line in EXAMPLES[verb])


def test_every_command_but_env_shows_examples():
    verbs = {
        f"{name} {child}" if hasattr(command, "commands") else name
        for name, command in GROUP.commands.items()
        for child in getattr(command, "commands", [""])
    }
    assert verbs - {"env"} == set(EXAMPLES)


@pytest.mark.parametrize("verb", EXAMPLES)
def test_examples_fit_eighty_columns(verb):
    assert all(len(line) <= 78 for line in EXAMPLES[verb])
