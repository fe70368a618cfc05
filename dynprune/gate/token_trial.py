"""Try by running whether every token of a hidden layer can choose neurons for itself."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dynprune.example import Example
from dynprune.gate.attachment import gates
from dynprune.gate.compensation import fold_means
from dynprune.gate.execution import set_execution
from dynprune.gate.instances import from_instances, to_instances
from dynprune.gate.linear import DynamicLinear
from dynprune.gate.neuron_gate import NeuronGate
from dynprune.gate.plan import GroupPlan
from dynprune.host.chance import seeded
from dynprune.host.outputs import close, tensors_of
from dynprune.host.trial import trial

__all__ = ["those_per_token"]

RATIO = 0.5  # share of neurons that the trial skips

MIXED = "its neurons meet those of other tokens on their way, so that no token chooses for itself"


def those_per_token(
    model: nn.Module, plans: Sequence[GroupPlan], example: Example
) -> list[GroupPlan]:
    """Refuse the plans of the token's grain whose neurons are not each token's own.

    Every token skips random neurons, masked. Noise upon the skipped neurons of every token, where
    they are made, must then change nothing behind what reads them: a layer between that takes
    neighbours in, or other code that mixes tokens, would carry it to tokens that keep the neuron.

    Args:
        model: gated, in eval mode; as before afterwards, with gates that skip nothing.
        plans: of its groups, verified.
        example: a call of several tokens.
    """
    asked = [p for p in plans if p.mode != "refused" and p.config.grain == "token"]
    if not asked:
        return list(plans)
    every = gates(model)
    owners = {plan.group.name: every[plan.group.name] for plan in asked}
    with torch.no_grad(), _trial_settings(model, owners):
        quiet = _outputs(model, example, {})
        failed: set[str] = set()
        if not close(_outputs(model, example, owners), quiet):
            for name, gate in owners.items():
                if not close(_outputs(model, example, {name: gate}), quiet):
                    failed.add(name)
    return [p.refused(MIXED) if p.group.name in failed else p for p in plans]


@contextmanager
def _trial_settings(model: nn.Module, owners: Mapping[str, NeuronGate]) -> Iterator[None]:
    """Let these gates skip neurons by random linear maps of each token, masked, for a while."""
    generator = torch.Generator().manual_seed(2)
    saved = {name: [p.clone() for p in gate.parameters()] for name, gate in owners.items()}
    try:
        for gate in owners.values():
            for parameter in gate.parameters():
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                if parameter is not gate.mean:
                    parameter.copy_(noise)
            gate.set_prune_ratio(RATIO if gate.width > 1 else 0.0)
        set_execution(model, "masked")
        yield
    finally:
        for name, gate in owners.items():
            for parameter, before in zip(gate.parameters(), saved[name], strict=True):
                parameter.copy_(before)
            gate.set_prune_ratio(0.0)
        set_execution(model, "compact")
        fold_means(model)


def _outputs(
    model: nn.Module, example: Example, noisy: Mapping[str, NeuronGate]
) -> list[Tensor | None]:
    """Run the model with noise upon what these gates skip; return what reads neurons gives."""
    chosen = {gate.members for gate in noisy.values()}
    made: list[Tensor | None] = []
    generator = torch.Generator().manual_seed(3)

    def disturb(layer: nn.Module, _args: object, output: Tensor) -> Tensor:
        assert isinstance(layer, DynamicLinear)
        y = output.movedim(1, -1) if layer.layout == "pointwise" else output
        for binding in layer.makes:
            if binding.neurons not in chosen:
                continue
            selection = binding.neurons.scope.current().selection(binding.neurons)
            rows = to_instances(y, selection.batch, binding.neurons.layout)
            index = None if binding.index is None else getattr(layer, binding.index)
            skipped = 1.0 - selection.keep.to(y)
            if index is not None:
                wide = torch.zeros(len(skipped), y.shape[-1], dtype=y.dtype, device=y.device)
                flat = index.reshape(1, -1).expand(len(skipped), -1)
                skipped = wide.scatter(1, flat, skipped.repeat_interleave(index.shape[1], 1))
            noise = torch.randn(rows.shape, generator=generator).to(rows)
            size = rows.abs().mean().clamp_min(0.05) * 3
            y = from_instances(rows + noise * size * skipped[:, None], y, binding.neurons.layout)
        return y.movedim(-1, 1) if layer.layout == "pointwise" else y

    def keep(_layer: nn.Module, _args: object, output: Tensor) -> None:
        made.append(output.detach().clone())

    layers = [m for m in model.modules() if isinstance(m, DynamicLinear)]
    # What a layer made of neurons is kept before noise comes upon what it makes itself.
    handles = [layer.register_forward_hook(keep) for layer in layers if layer.reads]
    handles += [
        layer.register_forward_hook(disturb)
        for layer in layers
        if any(binding.neurons in chosen for binding in layer.makes)
    ]
    try:
        with trial(model), seeded(0):
            return [*tensors_of(example.run(model)), *made]
    finally:
        for handle in handles:
            handle.remove()
