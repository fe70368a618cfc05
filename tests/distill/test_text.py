"""A text encoder learns from its teacher's embeddings, without labels."""

import copy

import pytest
import torch
from transformers import DistilBertConfig, DistilBertModel

from dynprune.data.text import TextBatches, TextData
from dynprune.distill import AdamW, Execution, LossTerm, Penalty, StagePlan, TrainingPlan, train
from dynprune.distill.schedule import LearningRate, PruneSchedule
from dynprune.errors import UsageError
from dynprune.gate import GateConfig, gate_model
from dynprune.graph import find_groups
from dynprune.planning.calibrate import start_from_weights
from dynprune.tasks.embedding import agreement, embed

STAGES = (
    StagePlan("features", 4, (LossTerm("normalized_mse"),)),
    StagePlan("embeddings", 26, (LossTerm("cosine", on="embedding"),)),
)


def sentences(count, seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 9, (count,), generator=generator).tolist()
    return TextData(
        tuple(tuple(torch.randint(2, 40, (n,), generator=generator).tolist()) for n in lengths)
    )


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    config = DistilBertConfig(
        dim=16,
        n_layers=1,
        n_heads=2,
        hidden_dim=32,
        vocab_size=40,
        dropout=0.0,
        attention_dropout=0.0,
    )
    teacher = DistilBertModel(config).eval()
    for parameter in teacher.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.15)
    student = copy.deepcopy(teacher)
    call = sentences(2, 0).call([0, 1])
    groups = find_groups(student, call).groups
    settings = GateConfig(prune_ratio=0.5, align=1)
    gate_model(student, call, groups, {group.name: settings for group in groups})
    start_from_weights(student)
    return student, teacher


def course(student, teacher, stages=STAGES, **changes):
    batches = TextBatches(sentences(64, 1), 8, seed=0)
    return train(
        student,
        teacher,
        batches.__getitem__,
        TrainingPlan(
            stages,
            optimizer=AdamW(lr=5e-3),
            learning_rate=LearningRate("constant"),
            sparsity=PruneSchedule("constant"),
            penalties=[Penalty("gate_l1", 1e-6)],
            execution=Execution(device="cpu", **changes),
        ),
    )


def test_distillation_brings_the_embeddings_closer(models):
    student, teacher = copy.deepcopy(models)
    held_out = list(sentences(40, 2).calls(8))
    wanted = embed(teacher, held_out)
    before = agreement(embed(student, held_out), wanted)
    records = list(course(student, teacher))
    after = agreement(embed(student, held_out), wanted)
    assert records[-1].stage == "embeddings"
    assert 1 - after.cosine < 0.7 * (1 - before.cosine)


def test_micro_batches_give_the_gradient_of_the_whole_batch(models):
    first = [next(course(*copy.deepcopy(models), STAGES[1:], accumulate=n)) for n in (1, 2)]
    # Sums in another order, in float32.
    assert first[0].loss == pytest.approx(first[1].loss, rel=1e-5)
    assert first[0].grad_norm == pytest.approx(first[1].grad_norm, rel=1e-4)


def test_a_loss_that_reads_labels_is_refused(models):
    stages = [StagePlan("labels", 1, (LossTerm("ce"),))]
    with pytest.raises(UsageError, match="'ce' compares with labels, and the data has none"):
        next(course(*copy.deepcopy(models), stages))
