"""Both streams of a command: what goes where, with a terminal and without."""

import logging
import sys

import pytest
from dynprune.cli.terminal import Terminal, table

from dynprune.host.progress import reported


def test_results_go_to_stdout_and_notes_to_stderr(capsys):
    terminal = Terminal()
    terminal.result({"a": 1}, "a is 1")
    terminal.note("counting")
    out, err = capsys.readouterr()
    assert (out, err) == ("a is 1\n", "counting\n")


def test_json_replaces_every_view(capsys):
    Terminal(json=True).result({"a": (1, 2)}, "a view")
    assert capsys.readouterr().out == '{\n  "a": [\n    1,\n    2\n  ]\n}\n'


def test_quiet_silences_notes_and_progress_but_no_error(capsys):
    terminal = Terminal(quiet=True)
    terminal.note("counting")
    with terminal.progress("count") as step:
        step(1, 1)
    logging.getLogger("dynprune.some").warning("careful")
    terminal.error("no")
    assert capsys.readouterr() == ("", "error: no\n")


def test_the_librarys_logs_go_to_stderr_once(capsys):
    Terminal()
    Terminal()
    logging.getLogger("dynprune.some").info("calibrated")
    logging.getLogger("dynprune.some").debug("details")
    assert capsys.readouterr() == ("", "calibrated\n")


def test_brackets_are_words_and_no_markup(capsys):
    terminal = Terminal()
    terminal.error("apply.targets[0] of [bold]x[/bold]")
    terminal.result({}, "[red]a[0]", table("group", rows=[("q_proj[qk]",)]))
    out, err = capsys.readouterr()
    assert err == "error: apply.targets[0] of [bold]x[/bold]\n"
    assert "[red]a[0]" in out
    assert "q_proj[qk]" in out


def test_without_a_terminal_progress_is_a_line_at_the_end(capsys):
    with Terminal().progress("train") as step:
        for done in range(1, 6):
            step(done, 5, loss=0.25, mIoU=None, kind="one")
    assert capsys.readouterr().err == "train 5/5  loss 0.25  kind one\n"


def test_without_a_terminal_short_parts_of_the_librarys_work_take_no_line(capsys):
    with Terminal().working():
        assert list(reported("calibrate", [1, 2])) == [1, 2]
    assert capsys.readouterr().err == ""


def test_without_a_terminal_long_parts_of_the_librarys_work_say_how_far_they_are(
    capsys, monkeypatch
):
    now = iter(range(0, 1000, 20))
    monkeypatch.setattr("dynprune.cli.terminal.time.monotonic", lambda: next(now))
    with Terminal().working():
        list(reported("calibrate", [1, 2]))
    assert capsys.readouterr().err.startswith("calibrate 1/2  0:00:")


def test_without_a_terminal_a_line_comes_every_few_seconds(capsys, monkeypatch):
    now = iter(range(0, 1000, 6))
    monkeypatch.setattr("dynprune.cli.terminal.time.monotonic", lambda: next(now))
    with Terminal().progress("train") as step:
        for done in range(1, 5):
            step(done, 5, seconds_left=3725.0)
    assert capsys.readouterr().err == "train 2/5  1:02:05 left\ntrain 4/5  1:02:05 left\n"


@pytest.fixture
def screen(monkeypatch):
    """Make stderr a terminal of 80 columns."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)


def test_on_a_terminal_a_bar_shows_the_figures_and_fits(capsys, screen):
    terminal = Terminal()
    with terminal.progress("distill") as step:
        step(1200, 160_000, part="features", seconds_left=61.0, loss=0.1234, r=0.15, mIoU=0.5381)
    shown = capsys.readouterr().err
    assert " 1200/160000 loss 0.1234 r 0.15 mIoU 0.5381 0:01:01 left" in shown
