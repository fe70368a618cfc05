"""A tiny gated SegFormer with dropout, stochastic depth and BatchNorm, and batches for it."""

import copy
import functools

import torch
from torch import nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from dynprune.distill import LossTerm, StagePlan
from dynprune.example import Example
from dynprune.gate import GateConfig, GroupPlan, gates, inject
from dynprune.graph.neurons import Channels, NeuronGroup
from dynprune.rewrite import rewrite

SIZE = 32
CLASSES = 3

FEATURES = StagePlan("features", 3, (LossTerm("mse"),))
LOGITS = StagePlan("logits", 3, (LossTerm("ce"), LossTerm("soft_ce", 0.5, temperature=2.0)))


def teacher(seed: int = 0, dropout: float = 0.1) -> nn.Module:
    torch.manual_seed(seed)
    config = SegformerConfig(
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        sr_ratios=[4, 2, 1, 1],
        mlp_ratios=[2, 2, 2, 2],
        decoder_hidden_size=16,
        num_labels=CLASSES,
        initializer_range=0.3,  # wide, so that a skipped neuron is felt
        hidden_dropout_prob=dropout,
        drop_path_rate=2 * dropout,
        classifier_dropout_prob=dropout,
    )
    return SegformerForSemanticSegmentation(config).eval()


def folded(model: nn.Module) -> nn.Module:
    """Fold the decoder, in place."""
    rewrite(model, Example((torch.zeros(1, 3, SIZE, SIZE),)), ["fold-decoder"])
    return model


@functools.cache
def _folded_once(dropout: float) -> nn.Module:
    return folded(teacher(dropout=dropout))


def folded_teacher(dropout: float = 0.1) -> nn.Module:
    """Return a new copy of a folded teacher, always the same."""
    return copy.deepcopy(_folded_once(dropout))


def gated(dense: nn.Module, prune_ratio: float = 0.5) -> nn.Module:
    """Copy a tiny model and gate its hidden layers."""
    student = copy.deepcopy(dense)
    plans = []
    for name, _ in student.named_modules():
        if not name.endswith("mlp.fc1"):
            continue
        stem = name.removesuffix(".fc1")
        width = student.get_submodule(name).out_features
        at = [
            Channels(f"{stem}.{part}", torch.arange(width)[:, None], width)
            for part in ("fc1", "dwconv.dwconv", "fc2")
        ]
        group = NeuronGroup(name, "ffn", at[:1], at[1:2], at[2:], width)
        plans.append(GroupPlan(group, GateConfig(prune_ratio=prune_ratio, align=4)))
    inject(student, plans)
    generator = torch.Generator().manual_seed(0)
    for gate in gates(student).values():
        # An order of their own: neurons of fresh gates tie, and rounding would choose.
        gate.prior.copy_(torch.randn(gate.neurons, generator=generator))
    return student


def batch(step: int, size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Make the batch of a step from the step alone."""
    generator = torch.Generator().manual_seed(1000 + step)
    images = torch.randn(size, 3, SIZE, SIZE, generator=generator)
    labels = torch.randint(0, CLASSES, (size, SIZE, SIZE), generator=generator)
    labels[step % size, : SIZE // 2] = 255
    return images, labels
