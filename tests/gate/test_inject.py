"""Putting gates in and taking them out, on a small SegFormer."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dynprune.errors import GateError, UsageError
from dynprune.example import Example
from dynprune.gate import (
    attached,
    gate_parameters,
    gates,
    inject,
    is_gated,
    recording,
    remove,
    set_execution,
    set_prune_ratio,
)
from dynprune.graph import Channels
from tests.gate.zoo_laws import error, forced, gated_animal, run
from tests.zoo import ZOO


@pytest.fixture
def gated():
    return gated_animal("segformer")


def _stir(model: torch.nn.Module) -> None:
    """Give every predictor an opinion of its own, as training would."""
    torch.manual_seed(3)
    for gate in gates(model).values():
        torch.nn.init.normal_(gate.predictor.up.weight, std=0.5)


@pytest.mark.parametrize("mode", ["value", "straight_through"])
@pytest.mark.parametrize("execution", ["masked", "compact"])
def test_a_fresh_gate_that_prunes_nothing_changes_nothing(mode, execution):
    dense, example = ZOO["segformer"].made()
    model, *_ = gated_animal("segformer", mode=mode)
    set_prune_ratio(model, 0.0)
    set_execution(model, execution)
    assert error(run(model, example), run(dense, example)) < 1e-5


@pytest.mark.parametrize("instances", [1, 2, 5])
@pytest.mark.parametrize("size", [(97, 131), (90, 120)])
def test_compact_equals_masked_for_every_batch_and_odd_image_sizes(gated, instances, size):
    model, *_ = gated
    call = Example((torch.randn(instances, 3, *size, generator=torch.Generator().manual_seed(2)),))
    with forced(model, instances):
        set_execution(model, "masked")
        masked = run(model, call)
        set_execution(model, "compact")
        assert error(run(model, call), masked) < 1e-5


def test_different_inputs_keep_different_neurons_and_shuffle_with_their_batch(gated):
    model, example, *_ = gated
    _stir(model)
    brightness = torch.arange(4.0).view(4, 1, 1, 1)
    call = Example((example.batched(4).tensors[0] + 3 * brightness,))
    with recording() as seen:
        outputs = run(model, call)
    masks = {name: found.selection.keep for name, (found,) in seen.items()}
    assert all(len(mask.unique(dim=0)) == 4 for mask in masks.values() if mask.shape[1] > 32)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = replace(call, args=(call.args[0][order],))
    with recording() as seen:
        assert error(run(model, shuffled), [t[order] for t in outputs]) < 1e-5
    for name, (found,) in seen.items():
        assert torch.equal(found.selection.keep, masks[name][order])


@pytest.mark.parametrize("mode", ["value", "straight_through"])
@pytest.mark.parametrize("source", ["tokens", "preactivation"])
def test_the_gradient_of_the_task_reaches_every_predictor(mode, source):
    model, example, *_ = gated_animal("segformer", mode=mode, source=source)
    model.train()
    logits = example.batched(2).run(model).logits
    F.cross_entropy(logits, torch.zeros(2, *logits.shape[-2:], dtype=torch.long)).backward()
    for gate in gates(model).values():
        for name, parameter in gate.predictor.named_parameters():
            gradient = parameter.grad
            assert gradient is not None, (gate.name, name)
            assert bool(gradient.isfinite().all())
            assert bool((gradient != 0).any()), (gate.name, name)


def test_training_runs_masked_and_evaluation_compact(gated):
    model, *_ = gated
    attention = model.segformer.stages[0].blocks[0].attention
    width = attention.head_dim
    assert all(gate.running == "masked" for gate in gates(model.train()).values())
    assert attention.head_dim == width * 2
    assert all(gate.running == "compact" for gate in gates(model.eval()).values())
    assert attention.head_dim == width


def test_a_copy_of_a_gated_model_has_gates_of_its_own(gated):
    model, example, *_ = gated
    twin = copy.deepcopy(model)
    before = run(model, example)
    set_prune_ratio(twin, 0.75)
    _stir(twin)
    assert error(run(twin, example), before) > 1e-3
    assert error(run(model, example), before) == 0.0
    remove(twin)
    assert not is_gated(twin)
    assert is_gated(model)


def test_a_failed_injection_leaves_the_model_untouched():
    model, *_, record = gated_animal("segformer")
    plans = list(attached(model).plans)
    remove(model)
    before = [(name, type(module)) for name, module in model.named_modules()]
    last = plans[-1]
    ghost = Channels("no.such.module", last.group.producers[0].index, last.group.neurons)
    plans[-1] = replace(last, group=replace(last.group, producers=(ghost,)), mode="compact")
    with pytest.raises(GateError, match=r"no\.such\.module"):
        inject(model, plans)
    assert [(name, type(module)) for name, module in model.named_modules()] == before
    assert not is_gated(model)
    inject(model, record.plans)
    with pytest.raises(UsageError, match="gated already"):
        inject(model, record.plans)


def test_gates_are_the_same_for_the_same_seed(gated):
    model, *_ = gated
    again, *_ = gated_animal("segformer")
    pairs = list(zip(gate_parameters(model), gate_parameters(again), strict=True))
    assert pairs
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_consumer_that_runs_before_its_producer_says_so(gated):
    model, *_ = gated
    block = model.segformer.stages[0].blocks[0]
    with pytest.raises(GateError, match="outside a call of its model"):
        block.mlp.fc2(torch.randn(1, 4, block.mlp.fc2.in_features))


def test_what_compact_runs_keep_follows_every_change_of_the_weights(gated):
    model, example, *_ = gated
    kept = [gate for gate in gates(model).values() if gate.mean is not None]
    assert kept

    def close() -> bool:
        with torch.inference_mode():
            set_execution(model, "compact")
            compact = [t.clone() for t in run(model, example)]
            set_execution(model, "masked")
            return error(compact, run(model, example)) < 1e-5

    def move_means() -> None:
        for gate in kept:
            gate.mean.add_(0.3)

    def move_weights() -> None:
        for parameter in model.parameters():
            parameter.mul_(1.1)

    def load() -> None:
        model.load_state_dict({k: v * 1.05 for k, v in model.state_dict().items()})

    def replace_data() -> None:
        for parameter in model.parameters():
            parameter.data = parameter.data * 0.9

    def edit_data_between_trainings() -> None:
        model.train()
        for parameter in model.parameters():
            parameter.data.mul_(1.1)
        model.eval()

    with torch.no_grad():
        for change in (move_means, move_weights, load, replace_data, edit_data_between_trainings):
            assert close()
            change()
            assert close(), change.__name__
