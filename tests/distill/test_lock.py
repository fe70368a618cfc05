"""One run at a time in a directory."""

import os

import pytest

from dynprune.distill.lock import OutputLock
from dynprune.errors import OutputError


def test_a_second_run_is_refused_until_the_first_is_over(tmp_path):
    with OutputLock(tmp_path / "run"):
        with (
            pytest.raises(OutputError, match="another run is writing into"),
            OutputLock(tmp_path / "run"),
        ):
            pass
        with OutputLock(tmp_path / "other"):
            pass
    with OutputLock(tmp_path / "run"):
        pass


def test_a_lock_is_let_go_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), OutputLock(tmp_path):
        raise RuntimeError
    with OutputLock(tmp_path):
        pass


def test_a_lock_file_alone_locks_nothing(tmp_path):
    (tmp_path / ".lock").write_text("")
    with OutputLock(tmp_path):
        pass


def test_a_directory_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write into"), OutputLock(tmp_path / "file" / "a"):
        pass


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_directory_is_an_output_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot write into"), OutputLock(tmp_path):
        pass
