"""Train a pruned student to do what its dense teacher does."""

from dynprune.distill.batches import Batch, BatchSource, SharedSource
from dynprune.distill.checkpoint import Checkpoint, CheckpointStore
from dynprune.distill.features import Observed, Observer
from dynprune.distill.interrupt import Interrupted
from dynprune.distill.metrics_log import Record
from dynprune.distill.optimizer import AdamW
from dynprune.distill.plan import Execution, Reporting, TrainingPlan
from dynprune.distill.processes import is_first_process, join_processes
from dynprune.distill.run import Validate
from dynprune.distill.stage import Loss, LossTerm, Penalty, StagePlan
from dynprune.distill.trainer import train

__all__ = [
    "AdamW",
    "Batch",
    "BatchSource",
    "Checkpoint",
    "CheckpointStore",
    "Execution",
    "Interrupted",
    "Loss",
    "LossTerm",
    "Observed",
    "Observer",
    "Penalty",
    "Record",
    "Reporting",
    "SharedSource",
    "StagePlan",
    "TrainingPlan",
    "Validate",
    "is_first_process",
    "join_processes",
    "train",
]
