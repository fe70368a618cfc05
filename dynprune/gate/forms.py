"""Turn gates that choose by nothing into narrow layers, and hidden layers into experts; proven."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynprune.errors import GateError
from dynprune.example import Example
from dynprune.gate.call import forcing
from dynprune.gate.expert_record import record_of_experts
from dynprune.gate.experts import ExpertLinear
from dynprune.gate.fixed import TOLERANCE, narrow_gates
from dynprune.gate.inject import attached
from dynprune.gate.layout import weight_layout
from dynprune.gate.plan import GroupPlan, gated
from dynprune.gate.route import Experts, put_experts, routers
from dynprune.gate.selection import GateOutput
from dynprune.host.modes import at_inference
from dynprune.host.outputs import close, tensors_of
from dynprune.host.trial import trial
from dynprune.rewrite.made import forget_undo
from dynprune.rewrite.record import Rewrite

__all__ = ["forced_expert", "put_forms"]

_ROWS = 1 << 24  # inputs or tokens of a call, at most, that may be forced; they take no memory


def put_forms(
    model: nn.Module, example: Example, experts: Mapping[str, Experts]
) -> tuple[list[Rewrite], Callable[[], None]]:
    """Give groups experts and fix all others, in place, and prove both.

    Args:
        model: gated in the order ``fixed``, calibrated.
        example: a call, on which the new forms are held against masked ones.
        experts: group name -> its experts; the other gated groups are fixed.

    Returns:
        The records, and a function that puts the dense model back.

    Raises:
        GateError: the new form computes something else; the model is then dense.
    """
    plans, made = gated(attached(model).plans), attached(model).made
    record, put_back = narrow_gates(model, example, leaving=experts)
    records, undo = [record] if record.details["groups"] else [], [put_back]
    chosen = [plan for plan in plans if plan.group.name in experts]

    def put_all_back() -> None:
        for step in reversed(undo):
            step()

    tried = sorted({0, max((len(own.index) for own in experts.values()), default=1) - 1})
    try:
        wanted = [_masked(model, chosen, experts, example, m) for m in tried if experts]
        if experts:
            undo.append(put_experts(model, chosen, experts))
            records.append(record_of_experts(model))
        for m, answer in zip(tried, wanted, strict=False):
            with forced_expert(model, m), at_inference(model), trial(model):
                found = tensors_of(example.run(model))
            if not close(found, answer, TOLERANCE):
                raise GateError(
                    "The model with experts computes something else than with the neurons of each "
                    "masked: code of its own depends on a width that was taken. Use "
                    "apply.gate.choose: neurons, or ignore groups by apply.ignore."
                )
    except BaseException:
        put_all_back()
        raise
    forget_undo(model, made)  # dense weights that were refitted: there is no way back to them
    return records, put_all_back


@contextmanager
def forced_expert(model: nn.Module, m: int) -> Iterator[None]:
    """Let every group of a model compute its expert ``m``, or its last one, for the block."""
    outputs = {}
    for router in routers(model).values():
        count = len(router.weight)
        scores = F.one_hot(torch.tensor(min(m, count - 1)), count).to(router.weight)
        outputs[router.members] = GateOutput(scores.expand(_ROWS, -1), None)
    with forcing(outputs):
        yield


def _masked(
    model: nn.Module,
    plans: Sequence[GroupPlan],
    experts: Mapping[str, Experts],
    example: Example,
    m: int,
) -> list[Tensor]:
    """Run a model without experts so that its consumers read one expert's neurons alone."""

    def reads(own: Experts, name: str) -> Callable[..., Tensor]:
        place = min(m, len(own.index) - 1)

        def after(module: nn.Module, args: tuple[Any, ...], _y: Tensor) -> Tensor:
            layout = weight_layout(module)
            x = args[0].movedim(1, -1) if layout == "pointwise" else args[0]
            index = own.index[place].to(x.device)
            weight: Tensor = module.get_parameter("weight")
            bias: Tensor | None = module._parameters.get("bias")
            matrix = weight.t() if layout == "transposed" else weight.flatten(1)
            if (reader := own.readers.get(name)) is not None:
                small, bias = reader.weight[place].to(x), reader.bias[place].to(x)
            else:
                small = matrix[:, index]
            y = F.linear(x[..., index], small, bias)
            return y.movedim(-1, 1) if layout == "pointwise" else y

        return after

    with ExitStack() as stack, at_inference(model), trial(model):
        for plan in plans:
            for channels in plan.group.consumers:
                module = model.get_submodule(channels.module)
                assert not isinstance(module, ExpertLinear)
                hook = reads(experts[plan.group.name], channels.module)
                stack.callback(module.register_forward_hook(hook).remove)
        return tensors_of(example.run(model))
