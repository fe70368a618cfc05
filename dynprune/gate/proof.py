"""One unit of neuron groups on one input: what is proven of it, and in which modes it is right."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dynprune.gate.attention import forms_of, narrow
from dynprune.gate.call import GatedNeurons, Observation, forcing, observing
from dynprune.gate.compensation import fold_means
from dynprune.gate.linear import DynamicLinear
from dynprune.gate.neuron_gate import NeuronGate
from dynprune.gate.plan import GroupPlan, Mode, gated
from dynprune.gate.products import narrowing
from dynprune.gate.selection import GateOutput
from dynprune.gate.slots import Site
from dynprune.gate.units import fewer_tokens
from dynprune.host.arguments import copied, with_noise
from dynprune.host.chance import seeded
from dynprune.host.failures import first_line, reraise_ours
from dynprune.host.outputs import TOLERANCE, Results, close, tensors_of
from dynprune.host.trial import Snapshot

__all__ = ["Trial"]

logger = logging.getLogger(__name__)

TRIAL_RATIO = 0.5  # share of neurons that a trial skips

#: Why the negative control of a group says nothing.
UNSEEN = "neurons that it keeps do not change the output"


class Trial:
    """One unit on one input: its masked result is the reference for everything else."""

    def __init__(
        self,
        model: nn.Module,
        module: nn.Module,
        plans: Sequence[GroupPlan],
        every: Mapping[str, NeuronGate],
        call: tuple[tuple[Any, ...], dict[str, Any]],
    ) -> None:
        self.model, self.module, self.plans = model, module, list(plans)
        self.call = call
        self.own = Snapshot(module)
        self.tolerance = 0.0
        self.reference: list[Tensor | None] = []
        scope = next(iter(every.values())).members.scope
        self.around = scope.current()
        self.gates = {plan.group.name: every[plan.group.name] for plan in plans}
        self.outputs: dict[GatedNeurons, GateOutput] = {}
        self.kept: dict[GatedNeurons, Tensor] = {}
        generator = torch.Generator().manual_seed(0)
        for gate in self.gates.values():
            like = gate.prior
            scores = torch.rand(2, gate.neurons, generator=generator).to(like)
            factor = (0.5 + torch.rand(2, gate.neurons, generator=generator)).to(like)
            self.outputs[gate.members] = GateOutput(scores, factor)
            if gate.mean is not None:  # stays inside the trial: the gates are made anew after it
                gate.mean.copy_(torch.rand(gate.neurons, generator=generator).to(like) - 0.5)
            gate.set_prune_ratio(TRIAL_RATIO if gate.width > 1 else 0.0)
        fold_means(model, self._readers(), every)

    def settle(self) -> list[GroupPlan]:
        """Return the plans with the modes that proved right."""
        whole = self.call
        try:
            for call in (fewer_tokens(whole), whole):
                self.call = call
                if call is not None and (plans := self._together()) is not None:
                    return plans
            return self._apart()
        finally:
            for gate in self.gates.values():
                gate.narrow_heads(())
                gate.verified = "masked"
                gate.set_prune_ratio(0.0)

    def _together(self) -> list[GroupPlan] | None:
        """Prove all groups compact at once; None where that does not hold, or may hide a fault."""
        read = {c.module for plan in self.plans for c in plan.group.consumers}
        made = {c.module for plan in self.plans for c in plan.group.producers}
        if not read.isdisjoint(made) or any(plan.mode != "compact" for plan in self.plans):
            return None
        if self._refer() is not None:
            return None
        chosen = [self._skipped_and_kept(plan) for plan in self.plans]
        if not all(len(neurons) for pair in chosen for neurons in pair):
            return None
        skipped = [(plan, pair[0]) for plan, pair in zip(self.plans, chosen, strict=True)]
        with self._disturbed(skipped):
            fitting, _ = self._compact(self.plans)
        if fitting is None:
            return None
        for plan, (_, kept) in zip(self.plans, chosen, strict=True):
            if self._hides(plan, kept):
                return None
        return fitting

    def _apart(self) -> list[GroupPlan]:
        """Prove every group alone, then find the modes in which they are right together."""
        plans = self._controlled_all()
        if any(plan.reason == UNSEEN for plan in plans):  # an untrained model may pass zeros on
            self.call = with_noise(self.call)
            plans = self._controlled_all()
        modes = self._best(kept) if (kept := gated(plans)) else {}
        return [modes.get(p.group.name, p) for p in plans]

    def _refer(self) -> str | None:
        """Run every group masked: the reference. Gives why the module fails, or None.

        The tolerance is that of the coarsest type in which a gated layer of this unit computes:
        under autocast, or where one part is kept in half precision, the output does not tell it.
        """
        seen: set[torch.dtype] = set()

        def note(_module: nn.Module, _args: Any, output: Any) -> None:
            seen.update(tensor.dtype for tensor in tensors_of(output))

        names = {name for plan in self.plans for name in plan.group.modules}
        handles = [self.model.get_submodule(n).register_forward_hook(note) for n in names]
        self.kept.clear()
        try:
            self.reference = self._run([])
        except Exception as error:  # the host's own code, on gated layers
            reraise_ours(error)
            return first_line(error)
        finally:
            for handle in handles:
                handle.remove()
        self.tolerance = max((TOLERANCE.get(dtype, 0.0) for dtype in seen), default=0.0)
        return None

    # The negative control

    def _controlled_all(self) -> list[GroupPlan]:
        failure = self._refer()
        return [self._controlled(plan, failure) for plan in self.plans]

    def _controlled(self, plan: GroupPlan, failure: str | None) -> GroupPlan:
        gate = self.gates[plan.group.name]
        if gate.kept == gate.width:
            return plan.refused("its segments are too small to prune")
        if failure is not None:
            return plan.refused(f"its module fails with a gated layer in its place: {failure}")
        if gate.members not in self.kept:
            return plan.refused("the model keeps its layers elsewhere and does not run gated ones")
        dropped, kept = self._skipped_and_kept(plan)
        if not len(dropped) or not len(kept):
            return plan.refused("it has too few neurons to verify")
        if not self._hides(plan, dropped):
            return plan.refused("neurons that it skips still change the output")
        if self._hides(plan, kept):
            return plan.refused(UNSEEN)
        return plan

    def _skipped_and_kept(self, plan: GroupPlan) -> tuple[Tensor, Tensor]:
        """Return the neurons that both instances skip, and those that both keep."""
        keep = self.kept.get(self.gates[plan.group.name].members)
        if keep is None:
            return torch.empty(0), torch.empty(0)
        skips, keeps = (keep.sum(0) == 0), (keep.sum(0) == 2)
        return skips.nonzero().flatten(), keeps.nonzero().flatten()

    def _hides(self, plan: GroupPlan, neurons: Tensor) -> bool:
        """Whether nothing beyond the group tells that the weights of its neurons changed."""
        with self._disturbed([(plan, neurons)]):
            return self._agrees(lambda: self._run([], apart=plan))

    @contextmanager
    def _disturbed(self, chosen: Sequence[tuple[GroupPlan, Tensor]]) -> Iterator[None]:
        """Replace the producer rows of groups' neurons by noise while the block runs."""
        saved: list[tuple[Tensor, Tensor, Tensor]] = []
        tensors: list[Tensor]
        generator = torch.Generator().manual_seed(1)
        try:
            for plan, neurons in chosen:
                for channels in plan.group.producers:
                    layer = self.model.get_submodule(channels.module)
                    assert isinstance(layer, DynamicLinear)
                    rows = channels.index[neurons.cpu()].flatten().to(layer.weight.device)
                    tensors = [layer.matrix] if layer.bias is None else [layer.matrix, layer.bias]
                    for tensor in tensors:
                        before = tensor[rows].clone()
                        noise = torch.randn(before.shape, generator=generator).to(before)
                        saved.append((tensor, rows, before))
                        strength = before.std(unbiased=False).clamp_min(0.05) * 3
                        tensor[rows] = before + noise * strength
            yield
        finally:
            for tensor, rows, before in reversed(saved):
                tensor[rows] = before

    # Modes

    def _best(self, plans: list[GroupPlan]) -> dict[str, GroupPlan]:
        chosen: dict[str, GroupPlan] = {}
        why: dict[str, str] = {}
        able = []
        for plan in plans:
            if plan.mode == "compact":
                able.append(plan)
            else:
                why[plan.group.name] = plan.reason or ""
        if len(able) > 1:
            fitting, reason = self._compact(able)
            chosen = {plan.group.name: plan for plan in fitting or ()}
        if len(chosen) == len(plans):
            return chosen
        for plan in able:
            if plan.group.name in chosen:
                continue
            fitting, reason = self._compact([plan])
            if fitting is not None:
                chosen[plan.group.name] = fitting[0]
            else:
                why[plan.group.name] = reason
        for plan in plans:
            if plan.group.name not in chosen:
                chosen[plan.group.name] = self._scattered(plan, why[plan.group.name])
        if not self._agrees(partial(self._run, list(chosen.values()))):
            why_not = "its groups are right alone but not together"
            chosen = {p.group.name: self._scattered(p, why_not) for p in plans}
        return chosen

    def _compact(self, plans: Sequence[GroupPlan]) -> tuple[list[GroupPlan] | None, str]:
        """Return these plans in a form in which all run compactly, or say why there is none."""
        reason = ""
        for form in forms_of(self.model, plans):
            try:
                result = self._run(form)
            except Exception as error:  # host code fails in its own ways on narrow tensors
                reraise_ours(error)
                narrow_what = "narrow heads" if plans[0].group.heads else "fewer neurons"
                reason = reason or f"{narrow_what} break its code: {first_line(error)}"
                continue
            if close(result, self.reference, self.tolerance):
                return form, ""
            reason = reason or "its code does not follow narrow neurons"
        return None, reason

    def _scattered(self, plan: GroupPlan, why: str) -> GroupPlan:
        modes: tuple[Mode, ...] = ("scatter", "masked")
        for mode in modes:
            tried = replace(plan, mode=mode, reason=why, heads=(), products=None)
            if self._agrees(partial(self._run, [tried])):
                return tried
        return plan.refused(why)

    # Running

    def _run(
        self,
        plans: Sequence[GroupPlan],
        apart: GroupPlan | None = None,
    ) -> list[Tensor | None]:
        """Run the unit by these plans; groups of no plan are masked.

        Returns:
            The output, and what every layer that reads neurons makes of them: later layers may
            hide it (a scale that starts near zero). None where its own neurons are narrow, or are
            those of the plan ``apart``.
        """
        for gate in self.gates.values():
            gate.narrow_heads(())
            gate.verified = "masked"
            gate.requested = "compact"
        for plan in plans:
            self.gates[plan.group.name].verified = plan.execution
        heads = next((plan.heads for plan in plans if plan.heads), ())
        narrow(self.model, heads, [self.gates[p.group.name] for p in plans if p.heads])
        sites = [Site(self.gates[p.group.name], p.products) for p in plans if p.products]
        torch.clear_autocast_cache()  # of weights that a trial has changed since
        made: dict[nn.Module, Tensor | None] = {}
        narrowed = {g.members for g in self.gates.values() if g.running != "masked"}

        def note(seen: Observation) -> None:
            self.kept[seen.neurons] = seen.selection.keep

        def keep(layer: nn.Module, _args: Any, output: Tensor) -> None:
            assert isinstance(layer, DynamicLinear)
            own = None if apart is None else self.gates[apart.group.name].members
            differs = any(b.neurons is own or b.neurons in narrowed for b in layer.makes)
            made[layer] = None if differs else output

        readers = self._readers()
        handles = [reader.register_forward_hook(keep) for reader in readers]
        try:
            args, kwargs = copied(self.call)
            with (
                seeded(0),  # chance falls alike in every run
                forcing(self.outputs),
                observing(note),
                self.around.again(),
                narrowing(sites),
            ):
                output = self.module.forward(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
            for gate in self.gates.values():
                gate.narrow_heads(())
                gate.verified = "masked"
            self.own.put_back()
        return [*tensors_of(output), *(made.get(reader) for reader in readers)]

    def _readers(self) -> list[nn.Module]:
        names = {c.module for plan in self.plans for c in plan.group.consumers}
        return [self.model.get_submodule(name) for name in sorted(names)]

    def _agrees(self, run: Callable[[], Results]) -> bool:
        try:
            return close(run(), self.reference, self.tolerance)
        except Exception as error:  # host code fails in its own ways on narrow tensors
            reraise_ours(error)
            logger.debug("A trial failed: %s", error)
            return False
