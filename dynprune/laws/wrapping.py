"""Laws of what stands around a model: hooks, other models, and weights of the caller's."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dynprune.example import Example
from dynprune.gate import gate_parameters
from dynprune.host.outputs import tensors_of
from dynprune.laws.calls import cloned, rows_of
from dynprune.laws.subject import Case, NotTriedError, Subject, answer

__all__ = ["functional_calls", "hooks_called", "inside_another_model"]


def hooks_called(subject: Subject) -> Iterator[Case]:
    """Hooks on a module are called as often as on the dense model's module of that name."""
    call = subject.batch
    wanted = _counts(subject.dense, call)
    ran = [name for name, count in wanted.items() if count]

    def counts(found: dict[str, int]) -> list[Tensor]:
        return [torch.tensor([found[name] for name in names])]

    there = dict(subject.model.named_modules())
    names = [name for name in ran if name in there]
    if not names:
        raise NotTriedError("no module of the dense model that runs has kept its name")
    yield Case(
        f"{len(names)} modules",
        lambda: counts(_counts(subject.model, call)),
        lambda: counts(wanted),
        own=True,
        exact=True,
    )


def _counts(model: nn.Module, call: Example) -> dict[str, int]:
    counts = {name: 0 for name, module in model.named_modules() if name}
    handles = []
    for name in counts:

        def count(*_: Any, name: str = name) -> None:
            counts[name] += 1

        handles.append(model.get_submodule(name).register_forward_hook(count))
    try:
        answer(model, call)
    finally:
        for handle in handles:
            handle.remove()
    return counts


def functional_calls(subject: Subject) -> Iterator[Case]:
    """A functional call with other weights answers as a copy that holds them does."""
    call = subject.batch
    gates = {id(parameter) for parameter in gate_parameters(subject.model)}
    generator = torch.Generator().manual_seed(6)
    others: dict[str, Tensor] = {}
    for name, tensor in subject.model.named_parameters():
        noise = torch.randn(tensor.shape, generator=generator).to(tensor)
        same = id(tensor) in gates or not tensor.is_floating_point()
        changed = tensor.detach() + 0.05 * noise * tensor.detach().abs().mean()
        others[name] = tensor.detach().clone() if same else changed

    def functional() -> list[Tensor]:
        model, used = subject.copy(), cloned(call)
        answer(model, call)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            return tensors_of(functional_call(model, others, used.args, dict(used.kwargs)))

    def holding() -> list[Tensor]:
        model = subject.copy()
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                tensor.copy_(others[name])
        model.train()
        return answer(model.eval(), call)

    yield Case("other weights", functional, holding, blur=0.0)


def inside_another_model(subject: Subject) -> Iterator[Case]:
    """A model that calls it twice, on inputs of different batches, gets both answers as alone."""
    first, second = subject.batch, rows_of(subject.batch)[-1]

    def both(order: tuple[Example, Example]) -> list[Tensor]:
        with torch.no_grad():
            return tensors_of(_Pair(subject.copy())(*map(cloned, order)))

    def alone(order: tuple[Example, Example]) -> list[Tensor]:
        return [tensor for call in order for tensor in subject.run(call)]

    for label, order in (("small last", (first, second)), ("small first", (second, first))):
        yield Case(label, partial(both, order), partial(alone, order), blur=0.0)


class _Pair(nn.Module):
    """Calls one model twice, as siamese models do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, first: Example, second: Example) -> tuple[list[Tensor], ...]:
        return tuple(tensors_of(call.run(self.model)) for call in (first, second))
