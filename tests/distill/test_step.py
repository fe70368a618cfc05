"""One optimizer step: pure in (state, step, batch), and the same however it is split."""

import copy

import pytest
import torch

from dynprune import gate
from dynprune.distill import AdamW, Execution, LossTerm, Penalty, StagePlan, TrainingPlan
from dynprune.distill.processes import join_processes
from dynprune.distill.schedule import LearningRate, PruneSchedule
from dynprune.distill.step import Stepper, step_seed
from dynprune.errors import UsageError
from tests.distill import tiny

CPU = Execution(device="cpu")


def stepper(execution=CPU, dropout=0.1, **changes):
    teacher = tiny.folded_teacher(dropout)
    settings = {
        "stages": [tiny.FEATURES, tiny.LOGITS],
        "optimizer": AdamW(lr=1e-2, eps=1e-3),
        "learning_rate": LearningRate("constant"),
        "sparsity": PruneSchedule(end_step=4),
        "penalties": [],
        "execution": execution,
        "seed": 3,
    }
    plan = TrainingPlan(**(settings | changes))
    return Stepper(tiny.gated(teacher), teacher, join_processes(execution.device), plan)


def weights(of):
    return {n: v.clone() for n, v in of.student.state_dict().items()}


def largest_difference(one, other):
    return max(float((one[n].double() - other[n].double()).abs().max()) for n in one)


def test_the_same_step_from_the_same_state_gives_the_same_bits():
    first, second = stepper(), stepper()
    for step in (0, 3):  # one of each stage
        first(step, tiny.batch(step))
        torch.manual_seed(999 + step)
        second(step, tiny.batch(step))
    assert largest_difference(weights(first), weights(second)) == 0.0


def test_dropout_differs_between_steps_and_processes():
    seeds = {step_seed(0, step, rank) for step in range(50) for rank in range(4)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**32 for seed in seeds)


@pytest.mark.parametrize("stage", [tiny.FEATURES, tiny.LOGITS])
def test_accumulation_gives_the_step_of_the_whole_batch(stage):
    # The labels of the parts differ in number: cross entropy must weigh them as the whole does.
    results = []
    for accumulate in (1, 2, 4):
        execution = Execution(device="cpu", accumulate=accumulate, batchnorm="frozen")
        one = stepper(execution, dropout=0.0, stages=[stage])
        result = one(2, tiny.batch(2))
        results.append((float(result.loss), weights(one)))
    for loss, values in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-5)
        assert largest_difference(values, results[0][1]) < 1e-5  # rounding, of steps of 1e-2


def test_the_teacher_is_never_touched():
    one = stepper()
    before = copy.deepcopy(one.teacher.state_dict())
    for step in (0, 3):
        one(step, tiny.batch(step))
    assert all(torch.equal(v, before[n]) for n, v in one.teacher.state_dict().items())
    assert not one.teacher.training
    assert all(p.grad is None for p in one.teacher.parameters())


def test_feature_steps_leave_the_decoder_alone_and_logit_steps_train_it():
    one = stepper()
    before = weights(one)
    one(0, tiny.batch(0))
    after = weights(one)
    decoder = [n for n in before if n.startswith("decode_head")]
    assert all(torch.equal(before[n], after[n]) for n in decoder)
    encoder = [n for n in before if n.startswith("segformer") and "proj" in n]
    assert any(not torch.equal(before[n], after[n]) for n in encoder)
    one(3, tiny.batch(3))
    last = weights(one)
    assert any(not torch.equal(after[n], last[n]) for n in decoder)


def test_batchnorm_is_live_unless_frozen():
    for batchnorm, moves in (("live", True), ("frozen", False)):
        one = stepper(Execution(device="cpu", batchnorm=batchnorm))
        norm = one.student.decode_head.source.batch_norm
        before = norm.running_mean.clone()
        one(3, tiny.batch(3))
        assert torch.equal(before, norm.running_mean) != moves


def test_without_dropout_a_student_like_its_teacher_has_no_feature_loss():
    losses = {}
    for dropout in ("live", "off"):
        execution = Execution(device="cpu", dropout=dropout, batchnorm="frozen")
        one = stepper(execution, dropout=0.3, stages=[tiny.FEATURES])
        losses[dropout] = float(one(0, tiny.batch(0)).loss)  # nothing is pruned yet
    assert losses["off"] < 1e-10 < 1e-4 < losses["live"]


def test_the_gradient_is_clipped_to_its_largest_norm():
    one = stepper(Execution(device="cpu", clip_norm=0.01), stages=[tiny.LOGITS])
    norms = []
    original = one.optimizer.step

    def step(*_):
        grads = [p.grad for p in one.student.parameters() if p.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(grads)))
        original()

    one.optimizer.step = step
    result = one(0, tiny.batch(0))
    assert float(result.grad_norm) > 0.01
    assert norms[0] == pytest.approx(0.01, rel=1e-3)


def test_the_prune_ratio_grows_and_the_kept_share_falls():
    one = stepper()
    ratios = []
    for step in range(6):
        result = one(step, tiny.batch(step))
        ratios.append(result.prune_ratio)
        assert result.kept_share >= 1 - result.prune_ratio - 1e-9
    assert ratios == pytest.approx([0.0, 0.125, 0.25, 0.375, 0.5, 0.5])
    assert result.kept_share == pytest.approx(0.5)


def test_a_schedule_without_an_end_ends_with_the_first_stage():
    one = stepper(sparsity=PruneSchedule())
    ratios = [one(step, tiny.batch(step)).prune_ratio for step in range(5)]
    assert ratios == pytest.approx([0.0, 0.5 / 3, 1.0 / 3, 0.5, 0.5])


def test_gradient_checkpointing_gives_the_same_step():
    penalties = [Penalty(weight=1e-2)]  # reads what the gates chose inside the saved layers
    plain = stepper(penalties=penalties)
    saving = stepper(Execution(device="cpu", gradient_checkpointing=True), penalties=penalties)
    for step in (0, 3):
        first = plain(step, tiny.batch(step))
        second = saving(step, tiny.batch(step))
        torch.testing.assert_close(first.loss, second.loss)
    assert largest_difference(weights(plain), weights(saving)) < 1e-6
    assert any(
        m.gradient_checkpointing
        for m in saving.student.modules()
        if hasattr(m, "gradient_checkpointing")
    )


def test_gradient_checkpointing_is_refused_where_the_model_has_none():
    model = torch.nn.Conv2d(3, tiny.CLASSES, 1)
    execution = Execution(device="cpu", gradient_checkpointing=True)
    plan = TrainingPlan([StagePlan("a", 1, (LossTerm("ce"),))], execution=execution)
    with pytest.raises(UsageError, match="Conv2d has no gradient checkpointing"):
        Stepper(model, None, join_processes(execution.device), plan)


def test_bf16_keeps_weights_in_float32_and_comes_close():
    full, half = stepper(dropout=0.0), stepper(Execution(device="cpu", precision="bf16"), 0.0)
    first, second = full(3, tiny.batch(3)), half(3, tiny.batch(3))
    assert all(v.dtype != torch.bfloat16 for v in half.student.state_dict().values())
    assert float(second.loss) == pytest.approx(float(first.loss), rel=2e-2)
    assert float(second.loss) != float(first.loss)


def test_the_learning_rate_is_one_curve_or_one_a_stage():
    rates = {}
    for per in ("run", "stage"):
        one = stepper(learning_rate=LearningRate(per=per))
        rates[per] = [one(step, tiny.batch(step)).lr / 1e-2 for step in range(6)]
    assert rates["run"] == pytest.approx([1 - t / 6 for t in range(6)])
    assert rates["stage"] == pytest.approx([1, 2 / 3, 1 / 3] * 2)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"accumulate": 0}, "accumulate=0 must be at least 1"),
        ({"clip_norm": 0.0}, "clip_norm=0.0 must be positive"),
        ({"ema": 1.0}, "ema=1.0 must lie between 0 and 1"),
    ],
)
def test_an_execution_that_cannot_be_meant_is_refused(settings, text):
    with pytest.raises(UsageError, match=text):
        Execution(**settings)


def test_gates_are_masked_while_they_learn():
    one = stepper()
    one(0, tiny.batch(0))
    assert {g.running for g in gate.gates(one.student).values()} == {"masked"}
