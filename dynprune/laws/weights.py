"""Laws of weights: the next call computes with what they are now, and copies are independent."""

import copy
from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
from torch import Tensor, nn

from dynprune.example import Example
from dynprune.gate import gate_parameters, gates, is_gated, remove, set_execution, set_prune_ratio
from dynprune.laws.equality import values_are_trained
from dynprune.laws.subject import Case, Subject, answer

__all__ = ["changed_weights", "copies", "modes", "state_dicts"]


def changed_weights(subject: Subject) -> Iterator[Case]:
    """However weights are changed, the next call computes with the new ones."""
    trained = values_are_trained(subject.model)
    for name, change in CHANGES.items():
        changed = cache(partial(_changed, subject, change))
        found = partial(_answer_of, changed, subject.batch)
        yield Case(f"by {name}", found, partial(_answer_anew, changed, subject.batch), blur=0.0)
        if not trained:
            whole = partial(_whole_answer, changed, subject.batch)
            dense = partial(_dense_answer, changed, subject.batch)
            yield Case(f"by {name}, nothing skipped", whole, dense)


def _changed(subject: Subject, change: Callable[[nn.Module], None]) -> nn.Module:
    model = subject.copy()
    answer(model, subject.batch)  # whatever may be kept of the old weights is kept now
    change(model)
    return model


def _answer_of(changed: Callable[[], nn.Module], call: Example) -> list[Tensor]:
    return answer(changed(), call)


def _answer_anew(changed: Callable[[], nn.Module], call: Example) -> list[Tensor]:
    """Return the answer of a copy that nothing was kept in: training mode keeps nothing."""
    model = copy.deepcopy(changed())
    model.train()
    return answer(model.eval(), call)


def _whole_answer(changed: Callable[[], nn.Module], call: Example) -> list[Tensor]:
    model = changed()
    before = {name: gate.prune_ratio for name, gate in gates(model).items()}
    set_prune_ratio(model, 0.0)
    found = answer(model, call)
    for name, gate in gates(model).items():
        gate.set_prune_ratio(before[name])
    return found


def _dense_answer(changed: Callable[[], nn.Module], call: Example) -> list[Tensor]:
    model = copy.deepcopy(changed())
    return answer(remove(model) if is_gated(model) else model, call)


def _noise(model: nn.Module) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Yield the model's own parameters with noise that is the same in every model of its kind."""
    generator = torch.Generator().manual_seed(4)
    gates = {id(parameter) for parameter in gate_parameters(model)}
    for parameter in model.parameters():
        if parameter.is_floating_point() and id(parameter) not in gates:
            noise = torch.randn(parameter.shape, generator=generator)
            yield parameter, 0.05 * noise.to(parameter) * parameter.detach().abs().mean()


def _through_data(model: nn.Module) -> None:
    for parameter, noise in _noise(model):
        parameter.data.add_(noise)


def _to_other_data(model: nn.Module) -> None:
    for parameter, noise in _noise(model):
        parameter.data = parameter.data + noise


def _in_place(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter, noise in _noise(model):
            parameter.add_(noise)


def _by_state_dict(model: nn.Module) -> None:
    other = copy.deepcopy(model)
    _in_place(other)
    model.load_state_dict(other.state_dict())


def _by_optimizer(model: nn.Module) -> None:
    pairs = list(_noise(model))
    for parameter, noise in pairs:
        parameter.grad = -noise
    torch.optim.SGD([parameter for parameter, _ in pairs], lr=1.0).step()
    model.zero_grad()


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    ".data in place": _through_data,
    "other .data": _to_other_data,
    "no_grad in place": _in_place,
    "load_state_dict": _by_state_dict,
    "an optimizer": _by_optimizer,
}


def copies(subject: Subject) -> Iterator[Case]:
    """A deep copy answers as the model does, and what happens to it does not reach the model."""
    for number, call in enumerate((*subject.calls, subject.batch), 1):
        yield Case(
            f"call {number}",
            partial(_of_copy, subject, call),
            partial(subject.run, call),
            exact=True,
        )

    def after() -> list[Tensor]:
        other = subject.copy()
        _through_data(other)
        set_execution(other, "masked")
        set_prune_ratio(other, 0.0)
        answer(other, subject.calls[0])
        return subject.run(subject.batch)

    yield Case("after its copy was changed", after, partial(subject.run, subject.batch), exact=True)


def _of_copy(subject: Subject, call: Example) -> list[Tensor]:
    return answer(subject.copy(), call)


def modes(subject: Subject) -> Iterator[Case]:
    """A round trip through training mode leaves the answer as it was."""
    call = subject.batch

    def back() -> list[Tensor]:
        model = subject.copy()
        model.train()
        return answer(model.eval(), call)

    def used() -> list[Tensor]:
        model = subject.copy()
        model.train()
        answer(model, call)
        return answer(model.eval(), call)

    yield Case("train and eval", back, partial(subject.run, call), exact=True)
    yield Case("a call in training mode", used, partial(subject.run, call), exact=True)


def state_dicts(subject: Subject) -> Iterator[Case]:
    """Its own state dict gives a model with other weights the same answer, and other types too."""
    call = subject.batch

    def loaded() -> list[Tensor]:
        other = subject.copy()
        _through_data(other)
        answer(other, call)
        other.load_state_dict(subject.model.state_dict())
        return answer(other, call)

    def through(dtype: torch.dtype) -> list[Tensor]:
        model = subject.copy()
        before = next(t.dtype for t in model.parameters() if t.is_floating_point())
        return answer(model.to(dtype).to(before), call)

    yield Case("load_state_dict", loaded, partial(subject.run, call), exact=True)
    yield Case("to float64 and back", partial(through, torch.float64), partial(subject.run, call))
