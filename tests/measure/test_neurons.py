"""What is said of neurons follows from what the model's layers compute and its gates keep."""

import json

import numpy as np
import pytest
import torch

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.gate import gates, recording, set_execution, set_prune_ratio
from dynprune.measure.neurons import (
    LARGE_RANGE,
    PERCENTILES,
    SMALL_MEDIAN,
    neuron_report,
    neuron_types,
)
from tests.distill import tiny


def calls(count: int = 5) -> list[Example]:
    generator = torch.Generator().manual_seed(7)
    shape = (1, 3, tiny.SIZE, tiny.SIZE)
    return [Example((torch.randn(shape, generator=generator) * (1 + i),)) for i in range(count)]


@pytest.fixture
def student():
    model = tiny.gated(tiny.folded_teacher()).eval()
    for gate in gates(model).values():  # let the input have a say
        torch.nn.init.normal_(gate.predictor.up.weight)
    return model


def test_energy_is_what_skipping_the_neuron_changes_at_the_consumers_output(student) -> None:
    found = neuron_report(student, calls())
    name = found.groups[0].name
    gate = gates(student)[name]
    set_prune_ratio(student, 0.0)
    inputs = []
    consumer = student.get_submodule(name.replace("fc1", "fc2"))
    with torch.no_grad():
        # A value gate scales what the consumer reads after it is measured, not before.
        handle = consumer.register_forward_pre_hook(lambda _, args: inputs.append(args[0][0]))
        set_execution(student, "masked")
        for call in calls():
            call.run(student)
        handle.remove()
    hidden = torch.stack(inputs)  # (images, tokens, neurons)
    moved = (hidden - gate.mean).square().mean(1).sqrt() * consumer.weight.norm(dim=0)
    expected = np.percentile(moved.detach().numpy(), (PERCENTILES[0], 50, PERCENTILES[1]), axis=0)
    group = found.groups[0]
    np.testing.assert_allclose(torch.stack([group.low, group.median, group.high]), expected, 1e-3)


def test_every_image_keeps_the_same_number_of_neurons_and_firing_rates_count_them(student) -> None:
    images = calls()
    found = neuron_report(student, images)
    kept = {name: [] for name in gates(student)}
    with torch.no_grad():
        for call in images:
            with recording() as seen:
                call.run(student)
            for name, (gate,) in seen.items():
                kept[name].append(set(gate.selection.index[0].tolist()))
    assert any(len(set(map(frozenset, sets))) > 1 for sets in kept.values())
    for group in found.groups:
        sets = kept[group.name]
        assert {len(s) for s in sets} == {group.kept}
        rates = [sum(j in s for s in sets) / len(sets) for j in range(group.neurons)]
        assert group.firing_rate.tolist() == pytest.approx(rates)
        assert group.always == len(set.intersection(*sets))
        assert group.never == group.neurons - len(set.union(*sets))
        assert sum(group.counts.values()) == group.neurons


def test_a_fixed_order_keeps_one_set_for_every_image() -> None:
    found = neuron_report(tiny.gated(tiny.folded_teacher()), calls())
    assert found.overlap.all == pytest.approx(1.0)
    for group in found.groups:
        assert group.always + group.never == group.neurons


def test_the_model_is_left_as_it_came(student) -> None:
    student.train()
    set_execution(student, "masked")
    before = {name: (g.prune_ratio, g.requested, g.training) for name, g in gates(student).items()}
    weights = {name: value.clone() for name, value in student.state_dict().items()}
    neuron_report(student, calls(2))
    after = {name: (g.prune_ratio, g.requested, g.training) for name, g in gates(student).items()}
    assert before == after
    assert all(torch.equal(value, weights[name]) for name, value in student.state_dict().items())


def test_types_follow_the_stated_thresholds() -> None:
    # One neuron of 10.2 keeps the level at 1.1 or more while the others stand at small ones.
    median = torch.tensor([10.2, 1.0, 0.3, 0.01, 0.01])
    level = median.mean()
    assert SMALL_MEDIAN * level < 0.3
    spread = LARGE_RANGE * torch.tensor([10.1, 2.4, 2.2, 2.2, 2.4])
    assert neuron_types(median, spread).tolist() == [0, 1, 0, 2, 1]
    # The types are of the neurons among each other: no unit plays a part.
    assert torch.equal(neuron_types(median * 1e-6, spread * 1e-6), neuron_types(median, spread))


def test_worlds_are_told_apart(student) -> None:
    found = neuron_report(student, calls(4), worlds=("a", "a", "b", "b"))
    assert found.worlds == {"a": 2, "b": 2}
    mean = [p.overlap for p in found.world_overlap]
    assert (mean[0] + mean[2]) / 2 == pytest.approx(found.overlap.same_world)
    assert mean[1] == pytest.approx(found.overlap.different_worlds)


def test_the_record_is_plain_and_says_its_thresholds(student) -> None:
    record = json.loads(json.dumps(neuron_report(student, calls(2)).to_json()))
    assert record["thresholds"] == {
        "percentiles": [5.0, 95.0],
        "large_range": LARGE_RANGE,
        "small_median": SMALL_MEDIAN,
    }
    for group in record["groups"]:
        assert {len(values) for values in group["per_neuron"].values()} == {group["neurons"]}
        assert [group["per_neuron"]["type"].count(t) for t in ("I", "II", "III")] == list(
            group["types"].values()
        )
    assert sum(record["types"].values()) == sum(g["neurons"] for g in record["groups"])


def test_progress_counts_both_passes(student) -> None:
    seen = []
    neuron_report(student, calls(2), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_what_cannot_be_measured_is_refused(student) -> None:
    with pytest.raises(UsageError, match="not gated"):
        neuron_report(tiny.folded_teacher(), calls(1))
    with pytest.raises(UsageError, match="No image"):
        neuron_report(student, [])
    with pytest.raises(UsageError, match="3 worlds are named for 2 images"):
        neuron_report(student, calls(2), worlds=("a", "b", "b"))
