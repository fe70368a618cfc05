"""The model on trial: how it is run, beside the dense model that it must follow."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from dynprune.example import Example
from dynprune.gate import gate_parameters, gates, set_execution, set_prune_ratio
from dynprune.host.outputs import tensors_of
from dynprune.laws.calls import cloned, joined, taken

__all__ = ["Case", "NotTriedError", "Subject"]

ROWS = 3  # instances of the batch that laws on batches run


class NotTriedError(Exception):
    """A law cannot be tried on this model or on this machine; the message says why."""


@dataclass(frozen=True)
class Case:
    """Two results that a law says are equal.

    Attributes:
        label: what was done, the same words for the dense model.
        found: computes the one.
        wanted: computes the other.
        tolerance: largest difference over the largest magnitude, beside rounding of the results'
            own type.
        blur: relative size of the rounding in which the two may differ: a model that stands
            between two choices is told by weights that are off by it. 0 where the very same
            computation is done, so that no choice may differ.
        own: the law is about what dynprune does itself, so the dense model is not asked.
        exact: the same bits.
    """

    label: str
    found: Callable[[], Sequence[Tensor]]
    wanted: Callable[[], Sequence[Tensor]]
    tolerance: float = 0.0
    blur: float = 3e-6
    own: bool = False
    exact: bool = False


@dataclass(frozen=True)
class Subject:
    """A model, calls of it, and the dense model.

    Laws may change how gates run, through the context managers here, and nothing else of the
    model; what they change besides, they change in a copy.

    Attributes:
        model: gated, rewritten or dense.
        dense: the independent reference.
        calls: of the user's own.
        directory: where files may be written.
        rows: of the batch that laws of batches run.
        anew: the dense architecture, built a second time, with the same weights.
        why_not_anew: the reason where there is none.
    """

    model: nn.Module
    dense: nn.Module
    calls: tuple[Example, ...]
    directory: Path
    rows: int = ROWS
    anew: nn.Module | None = None
    why_not_anew: str = ""

    def mirrored(self) -> "Subject":
        """Return the dense model as a subject of its own: what it does, no law may ask more of."""
        return replace(self, model=self.dense)

    def apart(self) -> "Subject":
        """Return a subject of copies: for laws whose calls may change a model's own settings."""
        return replace(self, model=self.copy(), dense=copy.deepcopy(self.dense))

    def blurred(self, size: float, seed: int) -> "Subject":
        """Return a subject whose weights, not those of its gates, are off by such rounding."""
        model = self.copy()
        generator = torch.Generator().manual_seed(seed)
        gating = {id(parameter) for parameter in gate_parameters(model)}
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.is_floating_point() and id(parameter) not in gating:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.mul_(1.0 + size * noise.to(parameter))
        return replace(self, model=model)

    def run(self, call: Example, model: nn.Module | None = None) -> list[Tensor]:
        """Return the tensors of one call; chance falls alike in every call."""
        return answer(self.model if model is None else model, call)

    def copy(self) -> nn.Module:
        """Return a copy of the model that a law may change."""
        return copy.deepcopy(self.model)

    @cached_property
    def batch(self) -> Example:
        """Return a batch of a few different rows: the user's own where their shapes agree."""
        for call in self.calls:
            if call.batch >= self.rows:
                return taken(call, range(self.rows))
        for first in range(len(self.calls)):
            alike = joined(self.calls[first : first + self.rows])
            if alike is not None and alike.batch >= self.rows:
                return taken(alike, range(self.rows))
        return self.calls[0].batched(self.rows)

    @contextmanager
    def skipping_nothing(self) -> Iterator[None]:
        """Keep every neuron for a while, in place."""
        with self.skipping(0.0):
            yield

    @contextmanager
    def skipping(self, ratio: float | None) -> Iterator[None]:
        """Skip this share of every group for a while, in place; as it is where None."""
        before = {name: gate.prune_ratio for name, gate in gates(self.model).items()}
        try:
            if ratio is not None:
                set_prune_ratio(self.model, ratio)
            yield
        finally:
            for name, gate in gates(self.model).items():
                gate.set_prune_ratio(before[name])

    @contextmanager
    def masked(self) -> Iterator[None]:
        """Compute everything and zero what is skipped for a while, in place."""
        set_execution(self.model, "masked")
        try:
            yield
        finally:
            set_execution(self.model, "compact")


def answer(model: nn.Module, call: Example) -> list[Tensor]:
    """Return the tensors of one call without gradients; chance falls alike in every call."""
    call = cloned(call)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return tensors_of(call.run(model))
