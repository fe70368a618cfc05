"""A subject of every kind, with its sound twin as the dense model."""

import copy

import pytest

from dynprune.host.modes import at_inference
from dynprune.laws import EXPORT_LAWS, LAWS, Subject, judge
from tests.laws import nets


@pytest.fixture
def subject(tmp_path):
    """Make a subject of a defective model: the sound one of the same weights is the dense model."""

    def make(kind, **changes):
        model = nets.made(kind)
        dense = nets.made(nets.PartSound if kind is nets.PartWrong else nets.Net, **changes)
        return Subject(model, dense, (nets.call(3), nets.call(4)), tmp_path)

    return make


@pytest.fixture
def statuses():
    """Hold a subject to laws; give the status of each by name."""

    def tried(subject, *names):
        every = {**LAWS, **EXPORT_LAWS}
        with at_inference(subject.model), at_inference(subject.dense):
            found = {name: judge(name, every[name], copied(subject)) for name in names or LAWS}
        return {name: verdict.status for name, verdict in found.items()}

    return tried


def copied(subject):
    """A subject whose state no earlier law has touched."""
    model = subject.model if type(subject.model) is nets.CopyWrong else None
    kept = model or copy.deepcopy(subject.model)
    return Subject(kept, subject.dense, subject.calls, subject.directory)
