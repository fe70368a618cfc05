"""Trace one call of a model into a flat graph of ATen operations that know their module."""

import logging
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, fx, nn

from dynprune.errors import UsageError
from dynprune.example import Example
from dynprune.graph.branches import record_branches
from dynprune.graph.fallback import DECOMPOSED, Recorded, record_one_run
from dynprune.host.arguments import copied
from dynprune.host.modes import at_inference
from dynprune.host.outputs import returning_tensors
from dynprune.host.quiet import without_logs, without_stderr, without_warnings

__all__ = ["Method", "Trace", "trace", "writes_in_place"]

logger = logging.getLogger(__name__)

Method = Literal["export", "make_fx"]

#: Instances in the traced call: with two, the batch axis cannot be mistaken for another of size 1.
INSTANCES = 2


@dataclass(frozen=True, eq=False)
class Trace:
    """A model's operations for one example.

    Attributes:
        module: the graph and its constants.
        names: node of a parameter, buffer or constant -> every name that the model has for it,
            fully qualified. Constants without a name have an empty tuple.
        values: node of a buffer or constant -> its value.
        scopes: node -> innermost module that ran it ("" for the model itself).
        inputs: nodes of the example's tensors.
        instances: batch of the traced call.
        batch: batch of the example that was asked for.
        method: ``export``, or ``make_fx`` where export failed.
        seconds: time that tracing took.
        notes: what the reader must know to trust the trace.
        branches: what other inputs may run instead, as far as that could be found out.
    """

    module: fx.GraphModule
    names: Mapping[fx.Node, tuple[str, ...]]
    values: Mapping[fx.Node, Tensor]
    scopes: Mapping[fx.Node, str]
    inputs: frozenset[fx.Node]
    instances: int
    batch: int
    method: Method
    seconds: float
    notes: tuple[str, ...] = ()
    branches: tuple["Trace", ...] = ()

    @property
    def graph(self) -> fx.Graph:
        """The graph of the whole call."""
        return self.module.graph


def trace(model: nn.Module, example: Example) -> Trace:
    """Record every ATen operation that ``model`` runs on ``example``, in eval mode.

    Parameters are read and not changed; training flags are put back as they were.
    `torch.export.export` is tried first. A model with data-dependent control flow fails it and is
    recorded from one real run instead, which sees only the branch that was taken; then the others
    are looked for by giving the model's questions about values other answers.

    Args:
        model: any module.
        example: one call of it.

    Raises:
        UsageError: the model fails on the example.
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise UsageError(
            f"{type(model).__name__} is or holds a TorchScript module, whose layers cannot be "
            "replaced; give the Python module that it was made from"
        )
    start = time.perf_counter()
    with at_inference(model) as kept, without_warnings():  # the tracer warns of its own internals
        failure: Exception | None = None
        for call in _calls(example):
            try:
                with _quiet():
                    return _exported(model, call, example.batch, start)
            except Exception as error:  # whatever the host's code or torch's tracer raises
                failure = failure or error
            kept.put_back()
        logger.debug("export failed: %s", failure)
        note = f"torch.export failed ({_first_line(failure)}): traced from one run, so only the "
        for call in _calls(example):
            try:
                recorded = record_one_run(model, call)
                kept.put_back()
                others, whole = record_branches(model, call, kept)
            except Exception as error:  # likewise
                failure = error
                kept.put_back()
                continue
            branches = [_recorded(other, call, example.batch, start) for other in others]
            note += "branches that this example takes, and those beside them, are seen"
            note += "" if whole else f"; of the latter only the first {len(branches)}"
            traced = _recorded(recorded, call, example.batch, start)
            return replace(traced, notes=(note,), branches=tuple(branches))
    message = (
        f"the model fails on the example, so it cannot be traced: {_first_line(failure)}. Give a "
        "call that it takes: any model of a module:function, those of transformers too, is called "
        "with its example_input_array (a tensor, a tuple or a dict) where that is set"
    )
    raise UsageError(message) from failure


def _recorded(recorded: Recorded, call: Example, batch: int, start: float) -> Trace:
    return Trace(
        *recorded,
        instances=call.batch,
        batch=batch,
        method="make_fx",
        seconds=time.perf_counter() - start,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from showing graphs and advice for its exporter's users where it fails."""
    with without_logs("torch"), without_stderr():
        yield


def _calls(example: Example) -> list[Example]:
    """The calls to try: at batch two, then as given. A cache in them is a copy, which may fill."""
    calls = [example.batched(INSTANCES)] + ([example] if example.batch != INSTANCES else [])
    return [Example(*copied((call.args, dict(call.kwargs)))) for call in calls]


def _first_line(error: Exception | None) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")


def _exported(model: nn.Module, call: Example, batch: int, start: float) -> Trace:
    with returning_tensors(model):
        program = torch.export.export(model, call.args, dict(call.kwargs), strict=False)
    operations = {node.target for node in program.graph.nodes}
    if operations & DECOMPOSED or any(_touches_neurons(node) for node in program.graph.nodes):
        table = torch.export.default_decompositions()
        program = program.run_decompositions({op: table[op] for op in operations & DECOMPOSED})
    signature = program.graph_signature
    targets: dict[str, str] = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    aliases = _aliases(model)
    known: dict[str, Tensor] = {
        **dict(model.named_buffers(remove_duplicate=False)),
        **{k: v for k, v in program.constants.items() if isinstance(v, Tensor)},
    }
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names: dict[fx.Node, tuple[str, ...]] = {}
    values: dict[fx.Node, Tensor] = {}
    inputs = set()
    for node in program.graph.nodes:
        if node.op != "placeholder":
            continue
        target = targets.get(node.name)
        if target is None:
            inputs.add(node)
            continue
        tensor = parameters.get(target, known.get(target))
        names[node] = aliases.get(id(tensor), (target,))
        if target in known:
            values[node] = known[target]
    return Trace(
        program.graph_module,
        names,
        values,
        dict(_scopes(model, program.graph_module)),
        frozenset(inputs),
        instances=call.batch,
        batch=batch,
        method="export",
        seconds=time.perf_counter() - start,
    )


def writes_in_place(node: fx.Node) -> bool:
    """Whether a node writes into another value so that its channels could change.

    A function of one whole value (``relu_``) may be done in place: each channel stays itself.
    """
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return False
    if len(node.all_input_nodes) > 1:
        return True
    made_by = getattr(getattr(node.args[0], "target", None), "_schema", None)
    if made_by is None or made_by.is_mutable:
        return False
    # Writing into a view changes what is viewed.
    return any(value.alias_info is not None for value in made_by.returns)


def _touches_neurons(node: fx.Node) -> bool:
    """Whether a node writes in place into values that could be neurons: not into indices."""
    value = node.meta.get("val")
    indices = isinstance(value, Tensor) and not value.is_floating_point()
    return writes_in_place(node) and not indices


def _scopes(model: nn.Module, module: fx.GraphModule) -> Iterator[tuple[fx.Node, str]]:
    """The innermost module of every node, nested graphs included, by its first name."""
    first = {id(child): name for name, child in model.named_modules()}
    names = {name: first[id(child)] for name, child in model.named_modules(remove_duplicate=False)}
    for child in module.modules():
        if isinstance(child, fx.GraphModule):
            for node in child.graph.nodes:
                stack = node.meta.get("nn_module_stack") or {}
                name = next(reversed(stack.values()))[0] if stack else ""
                # A second call of a module is marked with @1 behind its name.
                name = re.sub(r"@\d+", "", name)
                yield node, names.get(name, name)


def _aliases(model: nn.Module) -> dict[int, tuple[str, ...]]:
    """Identity of a parameter or buffer -> all its names."""
    found: dict[int, tuple[str, ...]] = {}
    named = chain(
        model.named_parameters(remove_duplicate=False),
        model.named_buffers(remove_duplicate=False),
    )
    for name, tensor in named:
        found[id(tensor)] = (*found.get(id(tensor), ()), name)
    return found
