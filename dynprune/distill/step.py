"""One optimizer step: everything that moves the weights, and all the state that it leaves."""

import contextlib
import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from dynprune import gate
from dynprune.distill import optimizer as optimizers
from dynprune.distill.batches import Batch, Inputs, micro_batches, moved
from dynprune.distill.ema import MovingAverage
from dynprune.distill.features import Observed, Observer
from dynprune.distill.plan import TrainingPlan
from dynprune.distill.stage import LABEL_LOSS, Objective, StagePlan
from dynprune.errors import UsageError

__all__ = ["StepResult", "Stepper", "step_seed"]


@dataclass(frozen=True)
class StepResult:
    """What a step showed.

    Attributes:
        loss: scalar, mean over this process's micro-batches.
        parts: its terms, unweighted, likewise.
        grad_norm: scalar, before clipping.
        lr: learning rate of parameters that are not a gate's.
        prune_ratio: mean over gates.
        kept_share: share of gated neurons that were kept.
    """

    loss: Tensor
    parts: Mapping[str, Tensor]
    grad_norm: Tensor
    lr: float
    prune_ratio: float
    kept_share: float


class Stepper:
    """Carries out optimizer steps; the same step from the same state gives the same bits.

    The random state is set at each step from (seed, step, process), so that dropout is the same
    whether the run came here at once or by a checkpoint, and no generator has to be saved.

    Args:
        student: the model that learns, in place.
        teacher: what it learns from, in eval mode from now on; None where no loss needs it.
        accelerator: of the processes and the device.
        plan: what the run is to do.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        accelerator: Accelerator,
        plan: TrainingPlan,
    ) -> None:
        self.plan = plan
        self.steps = plan.steps
        self.student = student.to(accelerator.device)
        self.teacher = None if teacher is None else teacher.to(accelerator.device).eval()
        self.accelerator = accelerator
        sparsity, execution = plan.sparsity, plan.execution
        if sparsity.end_step is None and sparsity.end_share is None:
            sparsity = replace(sparsity, end_step=plan.stages[0].steps)
        self.learning_rate, self.sparsity = plan.learning_rate, sparsity
        self.execution, self.seed = execution, plan.seed
        if execution.gradient_checkpointing:
            _checkpoint_gradients(student)
        own = list(gate.gate_parameters(student))
        self.optimizer = optimizers.build(student, plan.optimizer, own)
        self.average = None if execution.ema is None else MovingAverage(student, execution.ema)
        self.objective = Objective(
            student,
            penalties=plan.penalties,
            ignore_index=plan.ignore_index,
            class_weights=plan.class_weights,
        ).to(accelerator.device)
        self._wrapped = accelerator.prepare_model(self.objective)
        self._observer: Observer | None = None

    def set_progress(self, step: int) -> None:
        """Let the gates prune as they should after ``step`` steps, in place."""
        gate.set_sparsity_progress(self.student, self.sparsity.fraction(step, self.steps))

    def __call__(self, step: int, batch: Batch) -> StepResult:
        """Carry out the step that follows ``step`` steps.

        Args:
            step: optimizer steps done.
            batch: this process's share of the batch.
        """
        stage, start = self.plan.stage_at(step)
        self._enter(stage)
        self.set_progress(step)
        self._train_mode()
        factor = self._factor(step, stage, start)
        optimizers.set_learning_rate(self.optimizer, factor)
        set_seed(step_seed(self.seed, step, self.accelerator.process_index))
        loss, parts = self._accumulate(stage, batch)
        norm = self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(step)
        gates = list(gate.gates(self.student).values())
        neurons = sum(g.neurons for g in gates)
        return StepResult(
            loss,
            parts,
            norm,
            lr=self.optimizer.defaults["lr"] * factor,
            prune_ratio=sum(g.prune_ratio for g in gates) / max(1, len(gates)),
            kept_share=sum(g.kept * g.segments for g in gates) / neurons if neurons else 1.0,
        )

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Return all tensors of the state, by the file that they belong in."""
        files: dict[str, Mapping[str, Tensor]] = {
            "model": self.student.state_dict(),
            "optimizer": optimizers.state_tensors(self.optimizer),
        }
        if self.average is not None:
            files["ema"] = self.average.tensors
        return files

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Put back what :meth:`tensors` returned, in place."""
        self.student.load_state_dict(dict(tensors["model"]))
        optimizers.load_state(self.optimizer, tensors["optimizer"])
        if self.average is not None:
            self.average.load(tensors["ema"])

    def averaged(self) -> AbstractContextManager[None]:
        """Let the student hold its averaged weights for a while, where there are any."""
        return contextlib.nullcontext() if self.average is None else self.average.applied()

    def _enter(self, stage: StagePlan) -> None:
        if self.objective.stage is not stage:
            self.objective.set_stage(stage)
            self._observer = (
                Observer(self.teacher, stage.teacher_places, self.objective.group_outputs)
                if self.teacher is not None and stage.needs_teacher
                else None
            )

    def _train_mode(self) -> None:
        self.objective.train()
        for module in self.student.modules():
            if self.execution.batchnorm == "frozen" and isinstance(module, _BatchNorm):
                module.eval()
            if self.execution.dropout == "off" and _drops(module):
                module.eval()

    def _factor(self, step: int, stage: StagePlan, start: int) -> float:
        if self.learning_rate.per == "stage":
            return self.learning_rate.factor(step - start, stage.steps)
        return self.learning_rate.factor(step, self.steps)

    def _accumulate(self, stage: StagePlan, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Add up the gradient over the micro-batches; give the mean loss and its parts."""
        device, count = self.accelerator.device, self.execution.accumulate
        batch = moved(batch, device)
        total = self._label_total(stage, batch[1])
        loss = torch.zeros((), device=device)
        parts: dict[str, Tensor] = {}
        for index, (x, y) in enumerate(micro_batches(batch, count)):
            waits = index + 1 < count
            with self.accelerator.no_sync(self._wrapped) if waits else contextlib.nullcontext():
                with self._autocast():
                    part_loss, values = self._wrapped(x, y, self._target(x), total)
                self.accelerator.backward(part_loss / count)
            loss += part_loss.detach() / count
            for name, value in values.items():
                parts[name] = parts.get(name, 0) + value / count
        return loss, parts

    @torch.no_grad()
    def _target(self, inputs: Inputs) -> Observed | None:
        """Let the teacher look at the inputs, where the stage needs it."""
        return None if self._observer is None else self._observer(inputs)

    def _label_total(self, stage: StagePlan, labels: Tensor | None) -> Tensor | None:
        """Return what each micro-batch's ``ce`` divides by, so that the whole batch is one mean."""
        if labels is None or all(term.type != LABEL_LOSS for term in stage.losses):
            return None
        weight = self.objective.label_weight(labels)
        whole = self.accelerator.reduce(weight, "mean")
        return whole / self.execution.accumulate

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(
            self.accelerator.device.type,
            torch.bfloat16,
            enabled=self.execution.precision == "bf16",
        )

    def _clip(self) -> Tensor:
        parameters = [p for p in self.student.parameters() if p.grad is not None]
        if self.execution.clip_norm is not None:
            return torch.nn.utils.clip_grad_norm_(parameters, self.execution.clip_norm)
        return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def step_seed(seed: int, step: int, process: int) -> int:
    """Return the seed of one step on one process: 32 bits, unrelated for neighbours."""
    digest = hashlib.blake2b(repr((seed, step, process)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


def _drops(module: nn.Module) -> bool:
    """Whether a module is dropout or stochastic depth, whoever wrote it."""
    if isinstance(module, _DropoutNd):
        return True
    is_leaf = next(module.parameters(), None) is None and next(module.children(), None) is None
    return is_leaf and type(module).__name__.endswith(("DropPath", "StochasticDepth"))


def _checkpoint_gradients(student: nn.Module) -> None:
    """Switch on the model's own gradient checkpointing, in place."""
    if not getattr(student, "supports_gradient_checkpointing", False):
        raise UsageError(
            f"{type(student).__name__} has no gradient checkpointing; switch it off, and use a "
            "smaller crop or accumulate instead"
        )
    # The re-entrant form needs inputs that require a gradient, which pictures do not.
    settings = {"use_reentrant": False}
    name = "activation_checkpointing_enable"  # transformers from 5 on
    enable: Any = getattr(student, name, None) or student.gradient_checkpointing_enable
    enable(settings)
