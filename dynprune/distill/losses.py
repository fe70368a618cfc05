"""What a student learns from its teacher and from labels: one pure function per loss.

Feature losses take lists of maps, one per encoder stage, and add the stages up. Every loss is a
mean over the instances of the batch, computed in float32 whatever the maps' own type.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dynprune.errors import UsageError

__all__ = [
    "FEATURE_LOSSES",
    "channel_wise",
    "cosine",
    "cross_entropy",
    "label_weight",
    "mse",
    "normalized_mse",
    "soft_cross_entropy",
]

_LEAST_POWER = 1e-12


def _summed(
    loss: Callable[[Tensor, Tensor], Tensor], student: Sequence[Tensor], teacher: Sequence[Tensor]
) -> Tensor:
    """Add up a loss over the stages, in float32, after a check of their number and shapes."""
    ours = [tuple(x.shape) for x in student]
    theirs = [tuple(x.shape) for x in teacher]
    if ours != theirs or not ours:
        raise UsageError(
            f"the student's stage features have the shapes {ours}, the teacher's {theirs}; a "
            "feature loss needs the same stages from both"
        )
    parts = [loss(s.float(), t.float()) for s, t in zip(student, teacher, strict=True)]
    return torch.stack(parts).sum()


def mse(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    r"""Sum over stages of the mean squared error.

    .. math:: \sum_i \mathrm{mean}\,(S_i - T_i)^2

    Args:
        student: one map a stage.
        teacher: likewise.

    Shape:
        Any, the same for both; returns a scalar.

    Raises:
        UsageError: if the stages differ in number or shape.

    Source: DynaSegFormer, arXiv 2111.09499, the first stage of its distillation.
    """
    return _summed(F.mse_loss, student, teacher)


def normalized_mse(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    r"""Sum over stages of the squared error in units of the teacher's power, per instance.

    .. math:: \sum_i \mathrm{mean}_b \frac{\|S_{ib} - T_{ib}\|^2}{\|T_{ib}\|^2}

    No stage outweighs another because its features are larger. Arguments as for :func:`mse`.
    """

    def relative(s: Tensor, t: Tensor) -> Tensor:
        error = (s - t).square().flatten(1).sum(1)
        power = t.square().flatten(1).sum(1)
        return (error / power.clamp_min(_LEAST_POWER)).mean()

    return _summed(relative, student, teacher)


def cosine(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    r"""Sum over stages of one minus the cosine between the channel vectors at each position.

    .. math:: \sum_i \mathrm{mean}_{b, \text{position}} \left(1 - \cos(S_i, T_i)\right)

    Shape:
        Maps ``(B, C, ...)`` or tokens ``(B, N, C)``, the same for both; returns a scalar.
    """

    def angle(s: Tensor, t: Tensor) -> Tensor:
        return 1.0 - F.cosine_similarity(s, t, dim=-1 if s.dim() == 3 else 1).mean()

    return _summed(angle, student, teacher)


def channel_wise(
    student: Sequence[Tensor], teacher: Sequence[Tensor], *, temperature: float = 1.0
) -> Tensor:
    r"""Sum over maps of the divergence between each channel's distributions over positions.

    .. math:: \sum_i \frac{\tau^2}{B C} \sum_{b, c}
        \mathrm{KL}\left(\mathrm{softmax}_x(T_{ibc} / \tau) \,\|\, \mathrm{softmax}_x(S_{ibc} / \tau)\right)

    Args:
        student: feature maps, or logits as a list of one.
        teacher: likewise.
        temperature: the paper's tau; larger looks at a wider region.

    Shape:
        ``(B, C, H, W)``, or tokens ``(B, N, C)``; returns a scalar.

    Source: Shu et al., Channel-wise Knowledge Distillation, arXiv 2011.13256, Eq. 4.
    """  # noqa: E501 - one formula

    def divergence(s: Tensor, t: Tensor) -> Tensor:
        s, t = (x.transpose(1, 2) if x.dim() == 3 else x.flatten(2) for x in (s, t))
        ours = F.log_softmax(s / temperature, dim=-1)
        theirs = F.log_softmax(t / temperature, dim=-1)
        distance = F.kl_div(ours, theirs, log_target=True, reduction="none").sum(-1)
        return temperature**2 * distance.mean()

    return _summed(divergence, student, teacher)


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = 255,
    class_weights: Tensor | None = None,
    total: Tensor | None = None,
) -> Tensor:
    r"""Cross entropy with labels, a mean over the pixels that have one.

    .. math:: - \sum_x w_{y_x} \log \mathrm{softmax}(z_x)_{y_x} \,/\, \sum_x w_{y_x}

    Logits are resized bilinearly to the label's size, as SegFormer does in training. A batch
    without any label gives 0.

    Args:
        logits: of the student.
        labels: class indices.
        ignore_index: the value of pixels that count for nothing.
        class_weights: one weight a class; all 1 where None.
        total: what to divide by, where the batch is a part of a larger one; else
            :func:`label_weight` of these labels.

    Shape:
        ``(B, K, h, w)`` with ``(B, H, W)``, or ``(B, K)`` with ``(B,)``; returns a scalar.
    """
    if logits.dim() == 4 and logits.shape[-2:] != labels.shape[-2:]:
        logits = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
    labels = labels.long()
    if total is None:
        total = label_weight(labels, ignore_index=ignore_index, class_weights=class_weights)
    loss = F.cross_entropy(
        logits.float(), labels, class_weights, ignore_index=ignore_index, reduction="sum"
    )
    return loss / total.clamp_min(_LEAST_POWER)


def label_weight(
    labels: Tensor, *, ignore_index: int = 255, class_weights: Tensor | None = None
) -> Tensor:
    """Add up the weights of all labelled pixels: their number, where no class has a weight."""
    labelled = labels != ignore_index
    if class_weights is None:
        return labelled.sum().float()
    known = labels.long().where(labelled, torch.zeros_like(labels, dtype=torch.long))
    return (class_weights[known] * labelled).sum()


def soft_cross_entropy(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    r"""Cross entropy with the teacher's softened probabilities, a mean over all positions.

    .. math:: - \tau^2 \, \mathrm{mean}_x \sum_k
        \mathrm{softmax}(T_x / \tau)_k \log \mathrm{softmax}(S_x / \tau)_k

    It works at the logits' own resolution; the teacher's are resized where the two differ. The
    factor keeps the gradient's scale when the temperature changes (Hinton et al., arXiv
    1503.02531).

    Args:
        student: logits.
        teacher: logits.
        temperature: both logits are divided by it.

    Shape:
        ``(B, K, ...)``; returns a scalar.

    Source: DynaSegFormer, arXiv 2111.09499, the second stage of its distillation.
    """
    if student.shape[1] != teacher.shape[1]:
        raise UsageError(
            f"the student gives logits of {student.shape[1]} classes, the teacher of "
            f"{teacher.shape[1]}; distillation needs the same classes"
        )
    if student.dim() == 4 and student.shape != teacher.shape:
        teacher = F.interpolate(teacher, student.shape[-2:], mode="bilinear", align_corners=False)
    soft = F.softmax(teacher.float() / temperature, dim=1)
    log = F.log_softmax(student.float() / temperature, dim=1)
    return -(temperature**2) * (soft * log).sum(dim=1).mean()


FEATURE_LOSSES: Mapping[str, Callable[..., Tensor]] = {
    "mse": mse,
    "normalized_mse": normalized_mse,
    "cosine": cosine,
    "cwd": channel_wise,
}
