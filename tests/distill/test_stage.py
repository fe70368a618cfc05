"""Stage plans, and the objective against its terms taken one by one."""

import pytest
import torch

from dynprune import gate
from dynprune.distill import LossTerm, Observer, Penalty, StagePlan, losses
from dynprune.distill.stage import Objective
from dynprune.errors import UsageError
from tests.distill import tiny


def test_the_objective_is_the_weighted_sum_of_its_terms_and_penalties():
    teacher = tiny.folded(tiny.teacher())
    student = tiny.gated(teacher).eval()
    gate.set_execution(student, "masked")
    images, labels = tiny.batch(0)
    terms = (
        LossTerm("mse", 2.0),
        LossTerm("mse", 3.0, on="re:segformer\\.stages\\.0"),
        LossTerm("cwd", 0.5, on="logits", temperature=4.0),
        LossTerm("ce", 0.7),
        LossTerm("soft_ce", 0.3, temperature=2.0),
    )
    stage = StagePlan("all", 1, terms)
    objective = Objective(student, penalties=[Penalty(weight=0.01)], ignore_index=255).eval()
    objective.set_stage(stage)
    target = Observer(teacher, stage.teacher_places)(images)
    target.logits = target.logits + 1  # no loss is invariant to both this and a scale
    target.features["re:segformer\\.stages\\.0"] = [torch.zeros(4, 8, 8, 8)]
    loss, parts = objective(images, labels, target)

    with gate.recording() as seen:
        output = student(images, output_hidden_states=True)
    logits, stage_0 = output.logits, output.hidden_states[0]
    theirs = teacher(images, output_hidden_states=True).hidden_states
    errors = [(s - t).square().mean() for s, t in zip(output.hidden_states, theirs, strict=True)]
    values = sum(found.values.abs().sum(1).mean() for (found,) in seen.values())
    expected = {
        "mse": sum(errors),
        "mse_2": stage_0.square().mean(),
        "cwd": losses.channel_wise([logits], [target.logits], temperature=4.0),
        "ce": losses.cross_entropy(logits, labels),
        "soft_ce": losses.soft_cross_entropy(logits, target.logits, temperature=2.0),
        "gate_l1": values,
    }
    assert list(parts) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(parts[name], value.detach(), rtol=1e-4, atol=1e-6)
    weights = (2.0, 3.0, 0.5, 0.7, 0.3, 0.01)
    total = sum(w * v for w, v in zip(weights, expected.values(), strict=True))
    torch.testing.assert_close(loss, total, rtol=1e-4, atol=1e-5)


def test_the_penalty_reaches_every_gates_predictor():
    student = tiny.gated(tiny.folded(tiny.teacher())).train()
    objective = Objective(student, penalties=[Penalty(weight=1.0)])
    objective.set_stage(StagePlan("labels", 1, (LossTerm("ce", 0.0),)))
    loss, _ = objective(*tiny.batch(0))
    loss.backward()
    for name, module in gate.gates(student).items():
        assert module.predictor.up.weight.grad.abs().sum() > 0, name


def test_class_weights_and_ignored_labels_reach_the_cross_entropy():
    student = tiny.folded(tiny.teacher())
    images, labels = tiny.batch(0)
    weights = [1.0, 4.0, 0.5]
    objective = Objective(student, ignore_index=2, class_weights=weights).eval()
    objective.set_stage(StagePlan("labels", 1, (LossTerm("ce"),)))
    labels[labels == 255] = 2
    loss, _ = objective(images, labels)
    torch.testing.assert_close(
        loss,
        losses.cross_entropy(
            student(images).logits, labels, ignore_index=2, class_weights=torch.tensor(weights)
        ),
    )


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: LossTerm("l1"), "'l1' is not one of mse, normalized_mse, cosine, cwd, ce, soft"),
        (lambda: LossTerm("mse", -1.0), "must not be negative"),
        (lambda: LossTerm("soft_ce", temperature=0.0), "must be positive"),
        (lambda: Penalty("l2"), "'l2' is not gate_l1"),
        (lambda: Penalty(weight=-1.0), "must not be negative"),
        (lambda: StagePlan("empty", 5, ()), "0 losses"),
        (lambda: StagePlan("short", 0, (LossTerm("ce"),)), "has 0 steps"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused(make, text):
    with pytest.raises(UsageError, match=text):
        make()


def test_a_stage_knows_whether_it_needs_a_teacher_and_where_it_looks():
    assert not StagePlan("a", 1, (LossTerm("ce"),)).needs_teacher
    stage = StagePlan("b", 1, (LossTerm("ce"), LossTerm("mse")))
    assert stage.needs_teacher
    assert stage.student_places == {"logits", "encoder_stages"}
    assert stage.teacher_places == {"encoder_stages"}


def half_square(student, teacher):
    return sum((s - t).square().mean() for s, t in zip(student, teacher, strict=True)) / 2


def coverage(student, labels):
    return (student[0].shape[0] * (labels != 255).float()).mean()


def test_losses_of_ones_own_read_the_teacher_or_the_labels():
    student = tiny.folded_teacher()
    images, labels = tiny.batch(0)
    own = LossTerm(half_square, 2.0, on="logits")
    stage = StagePlan("own", 1, (own, LossTerm(coverage, 3.0, on="logits", against="labels")))
    assert stage.teacher_places == {"logits"}
    objective = Objective(student).eval()
    objective.set_stage(stage)
    target = Observer(tiny.teacher(1), stage.teacher_places)(images)
    loss, parts = objective(images, labels, target)
    logits = student(images).logits
    expected = {
        "half_square": (logits - target.logits).square().mean() / 2,
        "coverage": 4 * (labels != 255).float().mean(),
    }
    assert list(parts) == list(expected)
    torch.testing.assert_close(loss, 2 * expected["half_square"] + 3 * expected["coverage"])
    with pytest.raises(UsageError, match="loss 'coverage' compares with labels, and the data has"):
        objective(images, None, target)


def test_a_loss_of_ones_own_that_is_no_number_is_refused():
    student = tiny.folded_teacher()
    objective = Objective(student).eval()
    objective.set_stage(
        StagePlan("own", 1, (LossTerm(lambda s, y: s[0], on="logits", against="labels"),))
    )
    with pytest.raises(UsageError, match=r"loss '<lambda>' gave \(4, 3, 8, 8\)"):
        objective(*tiny.batch(0))


def test_what_a_checkpoint_remembers_of_a_loss_is_what_earlier_versions_wrote():
    assert LossTerm("cwd", 2.0, on="logits").to_json() == {
        "type": "cwd",
        "weight": 2.0,
        "on": "logits",
        "temperature": 1.0,
    }
    assert LossTerm(half_square).to_json()["type"] == "half_square"
