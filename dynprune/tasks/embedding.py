"""One vector a text: the mean over its real tokens, of unit length; and how well two models agree.

This is the pooling of the sentence-transformers models. The vector of padded text is the vector of
the text alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.host.modes import at_inference

__all__ = ["Agreement", "agreement", "embed", "text_embedding"]

_TOKENS = "last_hidden_state"


def text_embedding(output: Any, real: Tensor | None = None) -> Tensor:
    r"""Pool what an encoder returned.

    .. math:: e = m / \|m\|, \qquad m = \sum_t a_t h_t / \sum_t a_t

    Args:
        output: with a ``last_hidden_state`` h, or that tensor itself.
        real: the attention mask a: 1 for tokens, 0 for padding; None where all are real.

    Shape:
        - output: ``(B, T, C)``
        - real: ``(B, T)``
        - returns ``(B, C)``

    Raises:
        UsageError: if the output holds no token vectors.

    Source: Reimers and Gurevych, Sentence-BERT, arXiv 1908.10084, section 3.

    Example:
        >>> text_embedding(torch.tensor([[[3.0, 4.0], [9.0, 9.0]]]), torch.tensor([[1, 0]]))
        tensor([[0.6000, 0.8000]])
    """
    tokens = output if isinstance(output, Tensor) else getattr(output, _TOKENS, None)
    if not isinstance(tokens, Tensor) or tokens.dim() != 3:
        raise UsageError(
            f"no token vectors in the model's output of type {type(output).__name__}; an encoder "
            f"returns {_TOKENS}, (B, T, C)"
        )
    if real is None:
        return F.normalize(tokens.mean(1), dim=-1)
    weight = real.to(tokens.dtype)[..., None]  # (B, T, 1)
    return F.normalize((tokens * weight).sum(1) / weight.sum(1).clamp_min(1.0), dim=-1)


@dataclass(frozen=True)
class Agreement:
    """How close a student's embeddings are to its teacher's.

    Attributes:
        texts: how many were embedded.
        cosine: mean cosine between the two embeddings of a text.
        worst: the smallest one.
        neighbours: share of texts whose nearest other text is the same for both models.
    """

    texts: int
    cosine: float
    worst: float
    neighbours: float


def embed(model: nn.Module, calls: Iterable[Example]) -> Tensor:
    """Return the embeddings of every text of ``calls``, ``(texts, C)``, in order."""
    with at_inference(model):
        return torch.cat(
            [text_embedding(c.run(model), c.kwargs.get("attention_mask")).float() for c in calls]
        )


def agreement(student: Tensor, teacher: Tensor) -> Agreement:
    """Compare embeddings of the same texts.

    Args:
        student: of unit length.
        teacher: likewise.

    Shape:
        ``(texts, C)`` both.
    """
    cosines = (student * teacher).sum(-1)
    same = _nearest(student) == _nearest(teacher)
    return Agreement(
        len(cosines), float(cosines.mean()), float(cosines.min()), float(same.float().mean())
    )


def _nearest(embeddings: Tensor) -> Tensor:
    return (embeddings @ embeddings.t()).fill_diagonal_(-2.0).argmax(1)
