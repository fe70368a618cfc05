"""What the laws of gating need of a model: its tensors, errors between them, random choices."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dynprune.example import Example
from dynprune.gate import (
    GateConfig,
    GateOutput,
    fold_means,
    forcing,
    gate_model,
    gates,
    set_execution,
)
from dynprune.gate.inject import Attachment
from dynprune.graph import Grouping, find_groups
from dynprune.host.modes import at_inference
from dynprune.host.outputs import tensors_of
from tests.zoo import ZOO

ROUNDING = 1e-5  # float32 sums in another order
BFLOAT16 = 5e-2  # eight bits of mantissa, a few layers deep


def run(model: nn.Module, example: Example) -> list[Tensor]:
    """Return every floating-point tensor that a model returns."""
    with at_inference(model):
        return [t.double() for t in tensors_of(example.run(model)) if t.is_floating_point()]


def error(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Return the largest difference over the largest magnitude."""
    assert [t.shape for t in found] == [t.shape for t in wanted]
    pairs = zip(found, wanted, strict=True)
    return max(float((f - w).abs().max() / w.abs().max().clamp_min(1e-9)) for f, w in pairs)


def gated_animal(
    name: str, *, prune_ratio: float = 0.5, **config: object
) -> tuple[nn.Module, Example, Grouping, Attachment]:
    """Make a model of the zoo and gate all its candidates, causal or not."""
    model, example = ZOO[name].made()
    grouping = find_groups(model, example)
    settings = GateConfig(prune_ratio=prune_ratio, align=1, **config)  # type: ignore[arg-type]
    configs = {group.name: settings for group in grouping.candidates}
    record = gate_model(model, example, grouping.groups, configs, allow_causal=True)
    return model, example, grouping, record


@contextmanager
def forced(model: nn.Module, instances: int, seed: int = 0) -> Iterator[None]:
    """Yield every instance its own random mask and values, and every skipped neuron a mean."""
    random = torch.Generator().manual_seed(seed)
    outputs = {}
    for gate in gates(model).values():
        scores = torch.rand(instances, gate.neurons, generator=random)
        factor = torch.rand(instances, gate.neurons, generator=random) + 0.5
        outputs[gate.members] = GateOutput(scores.to(gate.prior), factor.to(gate.prior))
        if gate.mean is not None:
            gate.mean.data.copy_(torch.randn(gate.neurons, generator=random))
    fold_means(model)
    with forcing(outputs):
        yield


def gate_all(model, example):
    """Gate every group of a model that may be, in place."""
    groups = find_groups(model, example).groups
    settings = GateConfig(align=1)
    return gate_model(model, example, groups, {group.name: settings for group in groups})


def difference(model, call):
    """Return compact against masked execution, with a mask of its own for every input."""
    with forced(model, 3):
        set_execution(model, "masked")
        masked = run(model, call)
        set_execution(model, "compact")
        return error(run(model, call), masked)


def stir(model: nn.Module, seed: int = 3) -> None:
    """Give every predictor an opinion of its own, in place, as training would."""
    random = torch.Generator().manual_seed(seed)
    for gate in gates(model).values():
        assert gate.predictor is not None
        weight = gate.predictor.up.weight
        weight.data.copy_(torch.randn(weight.shape, generator=random) * 0.5)
        if gate.mean is not None:
            gate.mean.data.copy_(torch.randn(gate.neurons, generator=random) * 0.3)
    fold_means(model)


def stirred(name: str, **config: object) -> tuple[nn.Module, Example]:
    """Make a model of the zoo whose gates choose otherwise for every input."""
    model, example, *_ = gated_animal(name, **config)  # type: ignore[arg-type]
    stir(model)
    return model, example


def gated_per_token(
    model: nn.Module, example: Example, *, ratio: float = 0.5, **config: object
) -> tuple[nn.Module, Attachment]:
    """Gate all groups that let every token choose for itself, by random predictors."""
    groups = find_groups(model, example).groups
    settings = GateConfig(prune_ratio=ratio, align=1, grain="token", **config)  # type: ignore[arg-type]
    record = gate_model(model, example, groups, {group.name: settings for group in groups})
    random = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for gate in gates(model).values():
            for parameter in gate.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=random))
            if gate.mean is not None:
                gate.mean.zero_()
    return model, record
