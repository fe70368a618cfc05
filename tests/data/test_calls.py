"""Calls of a function of the user's own: what counts as one, and batches by the step alone."""

from collections import Counter

import pytest
import torch

from dynprune.data.calls import CallBatches, CallData, is_function, open_calls
from dynprune.errors import InputError
from dynprune.example import Example


@pytest.fixture
def function(tmp_path, monkeypatch):
    """Write a module whose function yields what is given, and return its name."""
    made = 0

    def write(body, parameters=""):
        nonlocal made
        made += 1
        name = f"calls_of_test_{made}_{tmp_path.name.replace('-', '_')}"
        head = "import torch\nfrom dynprune.example import Example\n"
        (tmp_path / f"{name}.py").write_text(f"{head}\ndef calls({parameters}):\n    {body}\n")
        return f"{name}:calls"

    monkeypatch.chdir(tmp_path)
    return write


@pytest.mark.parametrize(
    ("item", "args", "kwargs", "labels"),
    [
        ("torch.ones(2, 3)", 1, [], False),
        ("(torch.ones(2, 3), torch.ones(2))", 2, [], False),
        ("{'x': torch.ones(2, 3)}", 0, ["x"], False),
        ("({'x': torch.ones(2, 3)}, [1, 2])", 0, ["x"], True),
        ("((torch.ones(2, 3),), torch.tensor([1, 2]))", 1, [], True),
        ("(Example((torch.ones(2, 3),)), torch.tensor([1, 2]))", 1, [], True),
        ("Example((torch.ones(2, 3), torch.tensor([1, 2])))", 2, [], False),
    ],
)
def test_a_yielded_thing_is_a_call_with_or_without_labels(function, item, args, kwargs, labels):
    found = open_calls(function(f"yield {item}", "split"), "val")
    (call,) = found.calls
    assert len(call.args) == args
    assert list(call.kwargs) == kwargs
    assert call.batch == 2
    assert bool(found.labels) == labels


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("yield torch.ones(2, 3), torch.tensor([1, 2])", "may be an input with its labels or two"),
        ("yield 3", "int is no call"),
        ("yield {'x': 3}", "holds no tensor with a batch"),
        ("yield torch.ones(0, 3)", "a batch of 0"),
        ("yield ({'x': torch.ones(2)}, torch.ones(3))", "labels of shape \\(3,\\) for 2"),
        ("return torch.ones(2)", "returned Tensor, not calls one by one"),
        ("return 3", "returned int"),
        ("yield from ()", "yields no call"),
        ("raise ValueError('gone')", "raised ValueError: gone"),
    ],
)
def test_what_is_no_call_is_refused(function, body, words):
    with pytest.raises(InputError, match=words):
        open_calls(function(body, "split"), "val")


def test_a_function_of_other_arguments_is_refused(function):
    with pytest.raises(InputError, match="takes path, size; it may take the name of the split"):
        open_calls(function("yield torch.ones(1)", "path, size"), "val")


def test_every_tenth_call_is_held_out_where_the_function_takes_no_split(function):
    name = function("return (torch.full((1, 2), float(i)) for i in range(25))")
    parts = {split: open_calls(name, split) for split in ("train", "val")}
    seen = {s: [int(c.args[0][0, 0]) for c in data.calls] for s, data in parts.items()}
    assert seen["val"] == [9, 19]
    assert sorted(seen["train"] + seen["val"]) == list(range(25))
    assert len(open_calls(name, None)) == 25


def test_the_split_is_handed_to_a_function_that_takes_it(function):
    name = function("yield torch.ones(len(split), 1)", "split")
    assert open_calls(name, "train").calls[0].batch == 5
    assert open_calls(name, "val").calls[0].batch == 3


def data(*sizes, width=2):
    """Calls of some instances, each of which has a value and a label of its own."""
    calls, labels, count = [], [], 0
    for size in sizes:
        values = torch.arange(count, count + size)
        calls.append(Example((), {"x": values[:, None].float().expand(size, width), "scale": 2.0}))
        labels.append(values * 10)
        count += size
    return CallData("mine:calls", tuple(calls), tuple(labels))


def test_an_epoch_sees_every_instance_with_its_own_label():
    batches = CallBatches(data(3, 5, 4), 4, seed=1)
    seen = Counter()
    for step in range(3):
        call, labels = batches(step)
        assert call.kwargs["scale"] == 2.0
        assert torch.equal(call.kwargs["x"][:, 0] * 10, labels.float())
        seen.update(labels.tolist())
    assert seen == Counter({10 * i: 1 for i in range(12)})


def test_a_batch_depends_on_seed_and_step_alone():
    first, again = (CallBatches(data(3, 5, 4), 4, seed=1) for _ in range(2))
    last = again(7)
    assert torch.equal(first(7)[1], last[1])
    orders = {tuple(CallBatches(data(12), 4, seed=seed)(0)[1].tolist()) for seed in range(5)}
    assert len(orders) > 1


def test_instances_of_unlike_shapes_are_never_joined():
    wide, narrow = data(5), data(6, width=3)
    both = CallData("mine:calls", wide.calls + narrow.calls, wide.labels + narrow.labels)
    batches = CallBatches(both, 4, seed=0)
    shapes = Counter(tuple(batches(step)[0].kwargs["x"].shape) for step in range(4))
    assert shapes == Counter({(4, 2): 2, (4, 3): 2})


def test_other_values_have_another_fingerprint():
    first = data(3)
    other = CallData("mine:calls", (Example((first.calls[0].kwargs["x"] + 1e-3,)),), first.labels)
    assert first.fingerprint() == data(3).fingerprint()
    assert first.fingerprint() != other.fingerprint()


def test_a_directory_and_a_windows_path_are_no_function():
    assert is_function("mine:calls")
    assert is_function("a.b:c.d")
    assert not is_function("some/where")
    assert not is_function("C:\\photos")
