"""Directories that hold a run: what may begin there, and what is removed."""

import pytest
from dynprune.cli.output import begin_directory, check_directory

from dynprune.distill.lock import OutputLock
from dynprune.errors import OutputError

OWN = ("checkpoints", "metrics.jsonl", ".lock")


@pytest.fixture
def earlier(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints" / "step-1").mkdir(parents=True)
    (run / "metrics.jsonl").write_text("{}")
    (run / ".lock").write_text("")
    return run


def test_a_new_directory_and_an_empty_one_may_be_begun(tmp_path):
    check_directory(tmp_path / "new", OWN, overwrite=False)
    check_directory(tmp_path, OWN, overwrite=False)
    begin_directory(tmp_path / "a" / "b", OWN, overwrite=False)
    assert (tmp_path / "a" / "b").is_dir()


def test_an_earlier_run_is_replaced_on_demand_alone(earlier):
    with pytest.raises(OutputError, match="not empty"):
        check_directory(earlier, OWN, overwrite=False)
    check_directory(earlier, OWN, overwrite=True)
    begin_directory(earlier, OWN, overwrite=True)
    assert [path.name for path in earlier.iterdir()] == [".lock"]


def test_an_earlier_run_goes_on_untouched(earlier):
    check_directory(earlier, OWN, overwrite=False, resume=True)
    begin_directory(earlier, OWN, overwrite=False, resume=True)
    assert len(list(earlier.iterdir())) == 3


def test_a_run_that_began_since_the_check_is_not_joined(earlier):
    with pytest.raises(OutputError, match="another run began"):
        begin_directory(earlier, OWN, overwrite=False)
    assert len(list(earlier.iterdir())) == 3


def test_what_is_not_a_runs_own_is_never_removed(earlier):
    (earlier / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match=r"thesis\.tex, which no such run writes"):
        check_directory(earlier, OWN, overwrite=True)


def test_a_link_is_removed_and_not_followed(earlier, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").write_text("mine")
    (earlier / "metrics.jsonl").unlink()
    (earlier / "metrics.jsonl").symlink_to(tmp_path / "elsewhere")
    begin_directory(earlier, OWN, overwrite=True)
    assert (tmp_path / "elsewhere" / "mine").read_text() == "mine"


def test_a_run_that_still_goes_on_is_not_replaced(earlier):
    with OutputLock(earlier), pytest.raises(OutputError, match="another run"):
        begin_directory(earlier, OWN, overwrite=True)
    assert (earlier / "metrics.jsonl").exists()


def test_a_directory_below_a_file_cannot_be_begun(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write into"):
        begin_directory(tmp_path / "file" / "run", OWN, overwrite=False)
