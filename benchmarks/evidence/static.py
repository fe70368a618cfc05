"""Static baselines: torch-pruning takes neurons of a SegFormer out for good, by one importance."""

from collections.abc import Iterable

import torch.nn.functional as F
import torch_pruning
from torch import Tensor, nn

__all__ = ["prune_statically"]


def prune_statically(
    model: nn.Module,
    pictures: Tensor,
    ratio: float,
    *,
    labelled: Iterable[tuple[Tensor, Tensor]] | None = None,
) -> None:
    """Remove the same share of every hidden layer and every attention head, in place.

    Queries, keys and values of a head lose the same channels, since torch-pruning couples them.

    Args:
        model: transformers' SegFormer, its decoder not yet folded.
        pictures: an input that the model is traced with.
        ratio: share of the neurons that goes.
        labelled: batches whose cross entropy gives the gradients of first-order importance
            (Molchanov et al., arXiv 1906.10771); L2 magnitude where None.
    """
    blocks = [block for stage in model.segformer.stages for block in stage.blocks]  # type: ignore[union-attr]
    attentions = [block.attention for block in blocks]
    heads = {
        layer: attention.num_attention_heads
        for attention in attentions
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
    }
    roots = [block.mlp.fc1 for block in blocks] + [a.q_proj for a in attentions]
    importance = (
        torch_pruning.importance.MagnitudeImportance(p=2)
        if labelled is None
        else torch_pruning.importance.TaylorImportance()
    )
    pruner = torch_pruning.pruner.BasePruner(
        model,
        pictures,
        importance=importance,
        output_transform=lambda output: output.logits.sum(),
        pruning_ratio=0.0,
        pruning_ratio_dict=dict.fromkeys(roots, ratio),
        num_heads=heads,
        prune_head_dims=True,
    )
    if labelled is not None:
        _gather_gradients(model, labelled)
    pruner.step()
    for attention in attentions:
        attention.head_dim = attention.q_proj.out_features // attention.num_attention_heads
    model.zero_grad(set_to_none=True)


def _gather_gradients(model: nn.Module, labelled: Iterable[tuple[Tensor, Tensor]]) -> None:
    model.zero_grad(set_to_none=True)
    for images, labels in labelled:
        logits = F.interpolate(model(images).logits, labels.shape[-2:], mode="bilinear")
        F.cross_entropy(logits, labels, ignore_index=255).backward()
