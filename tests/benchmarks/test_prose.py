"""English sentences are found in source code, and nothing else is."""

import pytest

from benchmarks.prose import sentences_of, source_folders, write_prose
from dynprune.errors import InputError

SOURCE = '''
"""Give the number of words in a text. It counts what stands between two spaces!

    >>> count("a b") == 2

- A list has items, and each of them is a sentence.
"""
raise SystemExit("this is never run")
TEXT = "Give the number of words, in a `text`.  Give the number of words in a text."
SHORT = "Too short."
CODE = "Call f(x, y=2) -> {1: [2]} with *args | **kw <b> of /x."
'''


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "code.py").write_text(SOURCE, "utf-8")
    (tmp_path / "tests" / "other.py").write_text(
        '"""This is only the text of some test."""', "utf-8"
    )
    (tmp_path / "broken.py").write_text("def (", "utf-8")
    return tmp_path


def test_every_sentence_is_found_once_and_code_is_left_out(folder):
    assert list(sentences_of([folder])) == [
        "Give the number of words in a text.",
        "It counts what stands between two spaces!",
        "A list has items, and each of them is a sentence.",
    ]


def test_a_sentence_is_held_out_by_its_own_words(folder, tmp_path):
    sentences = [
        f"This is the {word} of all the sentences." for word in "abcdefghijklmnopqrstuvwxyz"
    ]
    for name, order in (("one", sentences), ("two", sentences[::-1][:20])):
        source = tmp_path / f"{name}_source"
        source.mkdir()
        (source / "code.py").write_text(f'"""{" ".join(order)}"""', "utf-8")
        write_prose(tmp_path / name, [source])
    parts = {
        (name, part): set((tmp_path / name / f"{part}.txt").read_text("utf-8").splitlines())
        for name in ("one", "two")
        for part in ("train", "val")
    }
    assert parts["one", "train"] | parts["one", "val"] == set(sentences)
    assert parts["two", "val"] == parts["one", "val"] & set(sentences[::-1][:20])
    assert not parts["one", "train"] & parts["one", "val"]
    assert parts["one", "val"]


def test_a_package_that_is_not_there_is_named():
    with pytest.raises(InputError, match="package 'no_such_package' is not installed"):
        source_folders(["no_such_package"])
