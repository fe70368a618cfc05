"""The embedded default's teacher: a small SegFormer trained on the embedded scenes in a minute.

It is a real SegFormer (four stages, spatial reduction, the concatenating decoder), only smaller,
so whatever is done to it is what is done to the published ones. A seed fixes every weight, for
one number of threads.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from dynprune.data import VOID, SegmentationData, TrainingBatches
from dynprune.demo.scenes import CLASSES, SIZE
from dynprune.distill.schedule import LearningRate
from dynprune.files import check_output
from dynprune.models import ModelSource, build
from dynprune.models.pretrained import write_pretrained
from dynprune.tasks.evaluate import Evaluation, evaluate

__all__ = ["SOURCE", "TeacherStep", "train_teacher"]

SOURCE = ModelSource(
    "transformers",
    architecture="SegformerForSemanticSegmentation",
    config={
        "model_type": "segformer",
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [16, 32, 64, 128],
        "num_attention_heads": [1, 2, 4, 8],
        "decoder_hidden_size": 128,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
        "id2label": dict(enumerate(CLASSES)),
        "label2id": {name: index for index, name in enumerate(CLASSES)},
    },
)
"""The teacher's architecture."""

_LEARNING_RATE = 3e-3  # at its peak
_SCHEDULE = LearningRate("poly", power=1.0, warmup_steps=60)
_BATCH = 8
_PLATE_WEIGHT = 2.0  # plates cover less of a scene than textures


@dataclass(frozen=True)
class TeacherStep:
    """Where the training of the teacher stands.

    Attributes:
        step: steps done.
        steps: steps in all.
        loss: cross entropy of the step.
        evaluation: on the validation scenes, after the last step; else ``None``.
    """

    step: int
    steps: int
    loss: float
    evaluation: Evaluation | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain values."""
        record: dict[str, Any] = {"step": self.step, "steps": self.steps, "loss": self.loss}
        if self.evaluation is not None:
            record["miou"] = self.evaluation.miou
        return record


def train_teacher(
    training: SegmentationData,
    validation: SegmentationData,
    directory: Path | str,
    *,
    steps: int = 700,
    seed: int = 0,
    overwrite: bool = False,
) -> Iterator[TeacherStep]:
    """Train the teacher from scratch and write it as a transformers directory.

    The directory is there once the last record has been yielded. Torch's random state is not
    read.

    Args:
        training: scenes to learn from.
        validation: scenes to score the result on.
        directory: where ``config.json`` and ``model.safetensors`` go.
        steps: optimizer steps.
        seed: of the fresh weights and of the order of the scenes.
        overwrite: replace a directory that is not empty.

    Yields:
        a record for every step.

    Raises:
        OutputError: if the directory is not empty or cannot be written.
    """
    check_output(Path(directory), overwrite=overwrite)
    model = build(SOURCE, seed=seed)
    batches = TrainingBatches(
        training, _BATCH, seed, SIZE, (0.85, 1.2), flip=0.0, photometric=False
    )
    weight = torch.tensor([1.0] * 4 + [_PLATE_WEIGHT] * (len(CLASSES) - 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * _SCHEDULE.factor(step, steps)
        model.train()
        images, labels = batches[step]
        logits = F.interpolate(model(images).logits, labels.shape[1:], mode="bilinear")
        loss = F.cross_entropy(logits, labels, weight=weight, ignore_index=VOID)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done = step + 1
        if done < steps:
            yield TeacherStep(done, steps, float(loss.detach()))
    evaluation = evaluate(model, validation)
    write_pretrained(model.eval(), Path(directory), overwrite=overwrite)
    yield TeacherStep(steps, steps, float(loss.detach()), evaluation)
