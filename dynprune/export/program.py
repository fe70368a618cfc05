"""Turn a model and a call into a program of tensors in, logits out, with sizes left open."""

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.export.passes.instances import COPIES
from dynprune.export.passes.kernels import choose_kernels
from dynprune.export.passes.movements import simplify_movements
from dynprune.export.passes.nchw import multiply_in_nchw
from dynprune.export.passes.norms import absorb_norms, scale_keys
from dynprune.export.passes.products import multiply_in_batches
from dynprune.export.passes.rms_norms import norms_to_rms_norms
from dynprune.export.passes.top_k import fuse_top_k
from dynprune.gate import gates, set_execution
from dynprune.gate.route import routers
from dynprune.host.modes import at_inference, evaluating
from dynprune.host.trial import trial
from dynprune.rewrite.decoder.folded import pointwise_as
from dynprune.tasks.logits import logits_of

__all__ = ["Exportable", "Target", "compact", "exportable"]

logger = logging.getLogger(__name__)

Target = Literal["onnxruntime", "openvino"]
"""The engine that a program is written to run fastest in; others run it too."""

SLICES = 8
"""Slices of channels of a folded decoder in ONNX Runtime, measured best."""

_SIDES = (128, 160)
"""Height and width that pictures are cut to for tracing: small, and not equal."""


@dataclass(frozen=True)
class Exportable:
    """A traced model.

    Attributes:
        program: maps the call's tensors to logits.
        names: of the inputs, in order.
        shapes: of the inputs; a size that is left open is a string.
        one_instance: whether the program takes one instance where the call may hold several, as a
            gated model's does: every instance multiplies by weights of its own.
        batch: of a file that runs such a program on every instance; a name where it is open.
    """

    program: ExportedProgram
    names: tuple[str, ...]
    shapes: tuple[tuple[int | str, ...], ...]
    one_instance: bool
    batch: int | str = "batch"

    @property
    def file_shapes(self) -> list[tuple[int | str, ...]]:
        """Shapes of the inputs of a file that runs the program on every instance."""
        if not self.one_instance:
            return list(self.shapes)
        return [(self.batch, *shape[1:]) for shape in self.shapes]


def exportable(
    model: nn.Module,
    example: Example,
    *,
    target: Target,
    fixed_size: bool = False,
    as_published: bool = False,
) -> Exportable:
    """Trace a model in evaluation mode and, if it is gated, in compact execution.

    Height and width of pictures and the length of token sequences stay open wherever the model
    leaves them open; so does the batch where the model is not gated.

    Args:
        model: any model; left as it is.
        example: a call of it; its tensors are the inputs, everything else stays fixed.
        target: the engine.
        fixed_size: take inputs of the example's size alone; the batch of a gated model stays open
            where it is larger than `COPIES`.
        as_published: keep norms as the model has them, for comparison.

    Raises:
        UsageError: the model cannot be traced.
    """
    # Where tokens choose experts for themselves, a batch is tokens like any others.
    chooses = gates(model) or any(r.grain == "instance" for r in routers(model).values())
    one_instance = bool(chooses) and not (fixed_size and example.batch == 1)
    if fixed_size:
        sample = call = example.batched(1) if one_instance else example
    else:
        call = example.batched(1 if one_instance else 2)
        sample = _small(model, call)
    form = partial(_decoder_form, target, fixed_size=fixed_size)
    opened = _no_axes if fixed_size else partial(_open_axes, one_instance=one_instance)
    program = _traced(model, sample, opened, form)
    if program is None and sample is not call:
        program = _traced(model, call, opened, form)
    if program is None:
        raise UsageError(
            f"{type(model).__name__} cannot be exported: torch.export does not trace it;"
            " -v shows why"
        )
    # Guards on open sizes are replayed when the program is decomposed, on arguments that are not
    # there; whether the sizes are open is checked by running the file.
    program._guards_code = []
    simplify_movements(program)
    absorb_norms(program)
    scale_keys(program)
    fuse_top_k(program)
    if target == "onnxruntime":
        multiply_in_nchw(program)
        choose_kernels(program)
    else:
        multiply_in_batches(program)
        if not as_published:
            norms_to_rms_norms(program)
    users = program.graph_signature.user_inputs
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    names = _input_names(model, example)
    shapes = tuple(_shape(nodes[str(name)].meta["val"], i) for i, name in enumerate(users))
    batch = example.batch if fixed_size and example.batch <= COPIES else "batch"
    return Exportable(program, names, shapes, one_instance, batch)


@contextmanager
def compact(model: nn.Module) -> Iterator[None]:
    """Run every gate of the model compactly, in evaluation mode, for the block."""
    requested = {gate: gate.requested for gate in gates(model).values()}
    with trial(model), evaluating(model), torch.no_grad():
        set_execution(model, "compact")
        try:
            yield
        finally:
            for gate, execution in requested.items():
                gate.requested = execution
    for gate in requested:
        gate.sync()


class _LogitsOfTensors(nn.Module):
    """Calls a model with its example's tensors replaced, and finds the logits."""

    def __init__(self, model: nn.Module, example: Example) -> None:
        super().__init__()
        self.model = model
        self.leaves, self.spec = pytree.tree_flatten((example.args, dict(example.kwargs)))

    def forward(self, tensors: tuple[Tensor, ...]) -> Tensor:
        given = iter(tensors)
        leaves = [next(given) if isinstance(x, Tensor) else x for x in self.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return logits_of(self.model(*args, **kwargs))


def _traced(
    model: nn.Module,
    call: Example,
    opened: Callable[[Tensor, int], dict[int, Any]],
    decoder: Callable[[], AbstractContextManager[None]],
) -> ExportedProgram | None:
    dynamic = tuple(opened(t, call.batch) for t in call.tensors)
    wrapper = _LogitsOfTensors(model, call)
    try:
        with compact(model), decoder():
            return torch.export.export(
                wrapper, (tuple(call.tensors),), dynamic_shapes=(dynamic,), strict=False
            )
    except Exception as error:  # any model may refuse to be traced, in its own words
        logger.info("torch.export: %s", error)
        return None


def _decoder_form(target: Target, *, fixed_size: bool) -> AbstractContextManager[None]:
    """Write folded decoders as the engine runs them fastest.

    ONNX Runtime resizes to a known size in the layout of its convolutions, and gains by slices.
    """
    if target == "openvino":
        return pointwise_as("convolution")
    return pointwise_as("convolution", slices=SLICES) if fixed_size else pointwise_as("linear")


def _no_axes(_: Tensor, __: int) -> dict[int, Any]:
    return {}


def _open_axes(tensor: Tensor, batch: int, *, one_instance: bool) -> dict[int, Any]:
    """Say which axes of an input are left open where the model allows it."""
    axes: dict[int, Any] = {}
    if tensor.dim() and tensor.shape[0] == batch and not one_instance:
        axes[0] = Dim.AUTO
    if tensor.dim() == 4 and tensor.is_floating_point():
        axes.update({2: Dim.AUTO, 3: Dim.AUTO})
    elif tensor.dim() == 2 and not tensor.is_floating_point():
        axes[1] = Dim.AUTO
    return axes


def _small(model: nn.Module, call: Example) -> Example:
    """Cut pictures down for tracing where the model takes them at that size."""

    def cut(leaf: Any) -> Any:
        is_picture = isinstance(leaf, Tensor) and leaf.dim() == 4 and leaf.is_floating_point()
        return leaf[..., : _SIDES[0], : _SIDES[1]] if is_picture else leaf

    small = Example(*pytree.tree_map(cut, (call.args, dict(call.kwargs))))
    if all(a.shape == b.shape for a, b in zip(small.tensors, call.tensors, strict=True)):
        return call
    try:
        with at_inference(model):
            small.run(model)
    except Exception as error:  # a model of fixed size, say
        logger.info("the model does not run on %s pixels: %s", _SIDES, error)
        return call
    return small


def _input_names(model: nn.Module, example: Example) -> tuple[str, ...]:
    """Name the inputs as the model's own signature does."""
    parameters = list(inspect.signature(model.forward).parameters)
    names = []
    for position, arg in enumerate(example.args):
        name = parameters[position] if position < len(parameters) else f"input_{position}"
        names += _leaf_names(name, arg)
    for name, arg in example.kwargs.items():
        names += _leaf_names(name, arg)
    return tuple(names)


def _leaf_names(name: str, arg: Any) -> list[str]:
    tensors = [leaf for leaf in pytree.tree_leaves(arg) if isinstance(leaf, Tensor)]
    return [name] if len(tensors) == 1 else [f"{name}_{i}" for i in range(len(tensors))]


def _shape(value: Tensor, place: int) -> tuple[int | str, ...]:
    """Return an input's shape, open sizes by name."""
    names = {0: "batch", 1: "length"} if value.dim() == 2 else {0: "batch", 2: "height", 3: "width"}
    suffix = "" if place == 0 else f"_{place}"
    shape: list[int | str] = []
    for axis, size in enumerate(value.shape):
        # A size that the model pins down in the middle of the trace is a symbol with one value.
        known = size if isinstance(size, int) else size.node.maybe_as_int()
        shape.append(names.get(axis, f"axis_{axis}{suffix}") if known is None else known)
    return tuple(shape)
