"""Losses against formulas written out by hand, and the laws that they obey."""

import pytest
import torch
from torch.nn import functional as F

from dynprune.distill import losses
from dynprune.errors import UsageError


def maps(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for shape in shapes]


SHAPES = ((2, 4, 6, 5), (2, 8, 3, 2))


@pytest.mark.parametrize("name", ["mse", "normalized_mse", "cosine", "cwd"])
def test_a_feature_loss_is_zero_for_equal_maps_and_positive_for_others(name):
    loss = losses.FEATURE_LOSSES[name]
    student, teacher = maps(0, *SHAPES), maps(1, *SHAPES)
    assert loss(teacher, teacher).item() == pytest.approx(0.0, abs=1e-6)
    assert loss(student, teacher).item() > 1e-3


@pytest.mark.parametrize("name", ["mse", "normalized_mse", "cosine", "cwd"])
def test_a_feature_loss_adds_up_its_stages(name):
    loss = losses.FEATURE_LOSSES[name]
    student, teacher = maps(0, *SHAPES), maps(1, *SHAPES)
    apart = sum(loss([s], [t]) for s, t in zip(student, teacher, strict=True))
    torch.testing.assert_close(loss(student, teacher), apart)


@pytest.mark.parametrize("name", ["mse", "normalized_mse", "cosine", "cwd"])
def test_a_feature_loss_of_a_batch_is_the_mean_of_its_halves(name):
    loss = losses.FEATURE_LOSSES[name]
    student, teacher = maps(0, *SHAPES), maps(1, *SHAPES)
    halves = [
        loss([x[rows] for x in student], [x[rows] for x in teacher])
        for rows in (slice(0, 1), slice(1, 2))
    ]
    torch.testing.assert_close(loss(student, teacher), torch.stack(halves).mean())


@pytest.mark.parametrize("name", ["cosine", "cwd"])
def test_tokens_and_maps_of_the_same_features_have_the_same_loss(name):
    loss = losses.FEATURE_LOSSES[name]
    student, teacher = maps(0, SHAPES[0]), maps(1, SHAPES[0])
    tokens = [[x.flatten(2).transpose(1, 2) for x in side] for side in (student, teacher)]
    torch.testing.assert_close(loss(*tokens), loss(student, teacher))


def test_mse_is_the_mean_squared_difference():
    (s,), (t,) = maps(0, SHAPES[0]), maps(1, SHAPES[0])
    expected = sum((a - b) ** 2 for a, b in zip(s.flatten(), t.flatten(), strict=True)) / s.numel()
    torch.testing.assert_close(losses.mse([s], [t]), expected)


def test_normalized_mse_does_not_see_the_scale_of_the_features():
    student, teacher = maps(0, *SHAPES), maps(1, *SHAPES)
    scaled = losses.normalized_mse([7 * x for x in student], [7 * x for x in teacher])
    torch.testing.assert_close(scaled, losses.normalized_mse(student, teacher))


def test_cosine_does_not_see_the_length_of_the_students_vectors():
    student, teacher = maps(0, *SHAPES), maps(1, *SHAPES)
    torch.testing.assert_close(
        losses.cosine([3 * x for x in student], teacher), losses.cosine(student, teacher)
    )


def test_channel_wise_distillation_compares_each_channel_as_a_distribution_over_positions():
    (s,), (t,) = maps(0, (1, 2, 3, 1)), maps(1, (1, 2, 3, 1))
    expected = 0.0
    for channel in range(2):
        p = torch.softmax(t[0, channel, :, 0] / 4, 0)
        q = torch.softmax(s[0, channel, :, 0] / 4, 0)
        expected += float((p * (p.log() - q.log())).sum()) * 16 / 2
    assert losses.channel_wise([s], [t], temperature=4.0).item() == pytest.approx(expected, 1e-4)


@pytest.mark.parametrize("name", ["mse", "normalized_mse", "cosine", "cwd"])
def test_stages_that_do_not_fit_are_refused(name):
    with pytest.raises(UsageError, match=r"the shapes \[\(2, 4, 6, 5\)\], the teacher's"):
        losses.FEATURE_LOSSES[name](maps(0, SHAPES[0]), maps(0, *SHAPES))


def test_cross_entropy_is_torchs_at_the_labels_size():
    (logits,) = maps(0, (2, 3, 2, 2))
    labels = torch.randint(0, 3, (2, 5, 7), generator=torch.Generator().manual_seed(0))
    labels[0, :2] = 255
    weights = torch.tensor([1.0, 2.0, 0.5])
    resized = F.interpolate(logits, (5, 7), mode="bilinear", align_corners=False)
    for class_weights in (None, weights):
        torch.testing.assert_close(
            losses.cross_entropy(logits, labels, class_weights=class_weights),
            F.cross_entropy(resized, labels, class_weights, ignore_index=255),
        )


def test_cross_entropy_of_parts_adds_up_to_that_of_the_whole_batch():
    (logits,) = maps(0, (4, 3, 5, 5))
    labels = torch.randint(0, 3, (4, 5, 5), generator=torch.Generator().manual_seed(0))
    labels[0, :4] = 255
    weights = torch.tensor([1.0, 2.0, 0.5])
    total = losses.label_weight(labels, class_weights=weights)
    parts = [
        losses.cross_entropy(z[None], y[None], class_weights=weights, total=total)
        for z, y in zip(logits, labels, strict=True)
    ]
    torch.testing.assert_close(
        torch.stack(parts).sum(), losses.cross_entropy(logits, labels, class_weights=weights)
    )


def test_cross_entropy_of_a_batch_without_labels_is_zero_and_has_a_gradient():
    (logits,) = maps(0, (1, 3, 2, 2))
    logits.requires_grad_()
    loss = losses.cross_entropy(logits, torch.full((1, 2, 2), 255))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad.abs().sum() == 0.0


def test_cross_entropy_takes_one_label_an_instance_too():
    (logits,) = maps(0, (4, 3))
    labels = torch.tensor([0, 2, 255, 1])
    torch.testing.assert_close(
        losses.cross_entropy(logits, labels), F.cross_entropy(logits, labels, ignore_index=255)
    )


def test_soft_cross_entropy_with_a_certain_teacher_is_cross_entropy():
    (logits,) = maps(0, (2, 3, 4, 4))
    labels = torch.randint(0, 3, (2, 4, 4), generator=torch.Generator().manual_seed(0))
    certain = 1e4 * F.one_hot(labels, 3).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(
        losses.soft_cross_entropy(logits, certain), losses.cross_entropy(logits, labels)
    )


def test_soft_cross_entropy_is_least_at_the_teacher_for_every_temperature():
    (teacher,) = maps(0, (2, 5, 3, 3))
    for temperature in (0.5, 1.0, 4.0):
        student = teacher.clone().requires_grad_()
        losses.soft_cross_entropy(student, teacher, temperature=temperature).backward()
        assert student.grad.abs().max().item() < 1e-6


def test_soft_cross_entropy_refuses_other_classes():
    with pytest.raises(UsageError, match="logits of 3 classes, the teacher of 4"):
        losses.soft_cross_entropy(torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 2, 2))
