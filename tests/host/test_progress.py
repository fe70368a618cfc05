"""Long work tells how far it has come, to the listener of its own thread alone."""

import threading

import pytest

from dynprune.host.progress import reported, reporting


def test_every_item_comes_through_and_is_counted():
    heard = []
    with reporting(lambda *told: heard.append(told)):
        assert list(reported("count", ["a", "b"])) == ["a", "b"]
    assert heard == [("count", 0, 2), ("count", 1, 2), ("count", 2, 2)]


def test_nothing_is_heard_where_nobody_listens_or_the_number_is_unknown():
    heard = []
    assert list(reported("count", "ab")) == ["a", "b"]
    with reporting(lambda *told: heard.append(told)):
        assert list(reported("count", iter("ab"))) == ["a", "b"]
    assert heard == []


def test_the_listener_before_hears_again_even_after_an_error():
    outer, inner = [], []
    with reporting(lambda *told: outer.append(told)):
        with pytest.raises(ZeroDivisionError), reporting(lambda *told: inner.append(told)):
            [1 / item for item in reported("inside", [1, 0])]
        list(reported("after", []))
    assert {part for part, *_ in inner} == {"inside"}
    assert {part for part, *_ in outer} == {"after"}


def test_another_threads_work_is_not_heard():
    heard = []
    with reporting(lambda *told: heard.append(told)):
        thread = threading.Thread(target=lambda: list(reported("elsewhere", [1, 2])))
        thread.start()
        thread.join()
    assert heard == []
