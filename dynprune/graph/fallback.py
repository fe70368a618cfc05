"""Record one real run of a model that `torch.export` refuses, as the same kind of graph."""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.utils import _pytree as pytree

from dynprune.example import Example
from dynprune.host.outputs import tensors_of

__all__ = ["DECOMPOSED", "Recorded", "record_one_run"]

#: Operations that are brought to simpler ones before labels walk through them.
DECOMPOSED = {torch.ops.aten.einsum.default}

Recorded = tuple[
    fx.GraphModule,
    dict[fx.Node, tuple[str, ...]],
    dict[fx.Node, Tensor],
    dict[fx.Node, str],
    frozenset[fx.Node],
]


def record_one_run(model: nn.Module, example: Example) -> Recorded:
    """Run ``model`` once and record what it does.

    Only the branches that this run takes are in the graph.

    Args:
        model: module in eval mode.
        example: the call.

    Returns:
        The fields ``module, names, values, scopes, inputs`` of a trace.
    """
    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    aliases: dict[int, list[str]] = {}
    for name, tensor in [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]:
        aliases.setdefault(id(tensor), []).append(name)
    state: dict[str, Tensor] = {**parameters, **buffers}
    leaves, spec = pytree.tree_flatten((example.args, dict(example.kwargs)))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def call(tensors: dict[str, Tensor], given: list[Tensor]) -> Any:
        filled = list(leaves)
        for place, tensor in zip(places, given, strict=True):
            filled[place] = tensor
        args, kwargs = pytree.tree_unflatten(filled, spec)
        # A copy: what the model assigns to its buffers is written into the dict.
        output = torch.func.functional_call(model, dict(tensors), args, kwargs)
        return tensors_of(output)

    spans: list[tuple[str, int, int]] = []
    open_spans: list[tuple[str, int]] = []

    def position() -> int:
        mode = get_proxy_mode()
        return len(mode.tracer.graph.nodes) if mode is not None else 0

    handles = []
    for name, module in model.named_modules():

        def enter(_: nn.Module, __: Any, name: str = name) -> None:
            open_spans.append((name, position()))

        def leave(_: nn.Module, __: Any, ___: Any) -> None:
            name, start = open_spans.pop()
            spans.append((name, start, position()))

        handles += [
            module.register_forward_pre_hook(enter),
            module.register_forward_hook(leave),
        ]
    try:
        table = torch.export.default_decompositions()
        traced = make_fx(
            call,
            decomposition_table={op: table[op] for op in DECOMPOSED},
            tracing_mode="real",
            pre_dispatch=True,
            _error_on_data_dependent_ops=False,
        )
        module = traced(state, [leaves[i] for i in places])
    finally:
        for handle in handles:
            handle.remove()
    return _assemble(module, list(state.items()), aliases, set(buffers), spans)


def _assemble(
    module: fx.GraphModule,
    state: list[tuple[str, Tensor]],
    aliases: dict[int, list[str]],
    buffers: set[str],
    spans: list[tuple[str, int, int]],
) -> Recorded:
    nodes = list(module.graph.nodes)
    names: dict[fx.Node, tuple[str, ...]] = {}
    values: dict[fx.Node, Tensor] = {}
    placeholders = [node for node in nodes if node.op == "placeholder"]
    for node, (name, tensor) in zip(placeholders, state, strict=False):
        names[node] = tuple(aliases[id(tensor)])
        node.meta.setdefault("val", tensor)
        if name in buffers:
            values[node] = tensor
    for node in nodes:
        if node.op == "get_attr" and isinstance(getattr(module, node.target, None), Tensor):
            names[node] = ()
            values[node] = getattr(module, node.target)
            node.meta.setdefault("val", values[node])
    scopes = dict.fromkeys(nodes, "")
    # Inner modules end first, so going backwards lets them overwrite their parents.
    for name, start, end in reversed(spans):
        scopes.update(dict.fromkeys(nodes[start:end], name))
    return module, names, values, scopes, frozenset(placeholders[len(state) :])
