"""Walk channel labels through a traced graph, one rule for each kind of operation."""

import inspect
import logging
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, fx

from dynprune.graph.labels import compact, tidy
from dynprune.graph.propagation import Ids, Layer, Product, Propagation
from dynprune.graph.trace import Trace, writes_in_place

__all__ = ["RETURNED", "Labels", "Rule", "Walk", "operation"]

logger = logging.getLogger(__name__)

#: Labels of a value: a tensor, several for a tuple, or None where no neuron stands.
Labels = Tensor | list[Tensor | None] | None
Rule = Callable[["Walk", fx.Node], Labels]

#: Why an output of the model is no hidden neuron.
RETURNED = "returned as an output of the model"

#: The addition of a layer's own bias, in a layer that does it by itself.
BIAS = "own bias"

#: Operations that may stand inside a linear layer beside its one product.
_REARRANGE = {
    "alias", "clone", "contiguous", "detach", "expand", "flatten", "permute", "reshape",
    "squeeze", "t", "to", "_to_copy", "transpose", "unflatten", "unsqueeze", "view",
    "_unsafe_view", "_assert_tensor_metadata", "type_as", "numpy_T", "mT", "getitem", BIAS,
}  # fmt: skip
#: Operations that hand on a weight as it is.
_COPIES = {"to", "_to_copy", "detach", "alias", "contiguous", "clone", "lift_fresh_copy"}
#: The one operation of a layer.
_PRODUCTS = {
    "addmm", "baddbmm", "bmm", "conv1d", "conv2d", "conv3d", "convolution", "linear", "matmul",
    "mm", "batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "native_batch_norm", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
}  # fmt: skip


def operation(node: fx.Node) -> str:
    """The plain name of a node's ATen operation, without namespace, overload or underscore."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return getattr(node.target, "__name__", str(node.target))
    namespace, _, name = schema.name.partition("::")
    if namespace != "aten":
        return str(schema.name)
    return name[:-1] if schema.is_mutable and name.endswith("_") else name


class Walk:
    """One pass of labels through a trace.

    Args:
        trace: the graph.
        rules: operation -> what it does to labels.

    Attributes:
        propagation: what was found.
        runs: layer -> every node that runs it, with the node of its input.
    """

    def __init__(self, trace: Trace, rules: Mapping[str, Rule]) -> None:
        self.trace = trace
        self.rules = rules
        self.propagation = Propagation()
        self.runs: dict[Layer, list[tuple[fx.Node, fx.Node]]] = defaultdict(list)
        self._labels: dict[fx.Node, Labels] = {}
        self._names: dict[fx.Node, tuple[str, ...]] = dict(trace.names)
        self._holders: dict[tuple[str, ...], list[fx.Node]] = defaultdict(list)
        for node, names in trace.names.items():
            self._holders[names].append(node)
        self._from_data: set[fx.Node] = set(trace.inputs)
        self._operations: dict[str, list[str]] = defaultdict(list)
        for node, scope in trace.scopes.items():
            if node.op == "call_function":
                parts = scope.split(".")
                name = BIAS if self.adds_own_bias(node) else operation(node)
                for end in range(1, len(parts) + 1):
                    self._operations[".".join(parts[:end])].append(name)

    def run(self) -> Propagation:
        """Walk the whole graph."""
        self._graph(self.trace.module, [])
        return self.propagation

    # -- what rules ask of a node

    def labels(self, node: Any) -> Tensor | None:
        """Labels of a tensor argument; None for anything else."""
        found = self._labels.get(node) if isinstance(node, fx.Node) else None
        return found if isinstance(found, Tensor) else None

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Shape of a node's tensor."""
        return tuple(int(size) for size in node.meta["val"].shape)

    def arguments(self, node: fx.Node) -> dict[str, Any]:
        """A node's arguments by their names in the operation's schema."""
        bound: dict[str, Any] = {}
        for place, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
            if place < len(node.args):
                bound[argument.name] = node.args[place]
            elif argument.name in node.kwargs:
                bound[argument.name] = node.kwargs[argument.name]
            else:
                bound[argument.name] = argument.default_value
        return bound

    def depends_on_data(self, node: fx.Node) -> bool:
        """Whether a value depends on the example's tensors rather than on weights alone."""
        return node in self._from_data

    def constant(self, node: fx.Node) -> Tensor | None:
        """The value of a buffer or constant, seen through copies."""
        while node.op == "call_function" and operation(node) in _COPIES:
            node = node.args[0]  # type: ignore[assignment]
        return self.trace.values.get(node)

    def origin(self, node: fx.Node) -> fx.Node:
        """The value that a node is a copy of."""
        while node.op == "call_function" and operation(node) in _COPIES | {"dropout"}:
            node = node.args[0]  # type: ignore[assignment]
        return node

    def names(self, node: Any) -> tuple[str, ...]:
        """All names of a parameter or buffer, seen through casts."""
        while isinstance(node, fx.Node) and node not in self._names:
            if node.op != "call_function" or operation(node) not in _COPIES:
                return ()
            node = node.args[0]
        return self._names.get(node, ())

    def sources(self, node: fx.Node) -> list[str]:
        """Names of the parameters and buffers that a value is computed from."""
        seen: set[fx.Node] = set()
        found: list[str] = []
        todo = [node]
        while todo:
            here = todo.pop()
            if here in seen:
                continue
            seen.add(here)
            found += self._names.get(here, ())[:1]
            todo += here.all_input_nodes
        return found

    def scope(self, node: fx.Node) -> str:
        """The innermost module that ran a node."""
        return self.trace.scopes.get(node, "")

    def adds_own_bias(self, node: fx.Node) -> bool:
        """Whether a node adds the bias of the very module that runs it."""
        if operation(node) != "add" or node.kwargs.get("alpha", 1) != 1:
            return False
        own = f"{self.scope(node)}.bias"
        return any(own in self.names(argument) for argument in node.args)

    # -- what rules report

    def disqualify(self, nodes: Iterable[Any], reason: str) -> None:
        """Taint the labels of these arguments."""
        for node in nodes:
            found = self._labels.get(node) if isinstance(node, fx.Node) else None
            for labels in found if isinstance(found, list) else [found]:
                self.propagation.disqualify(labels, reason)

    def disqualify_others(self, node: fx.Node, *handled: Any) -> None:
        """Taint every labelled argument that a rule does not handle."""
        others = [n for n in node.all_input_nodes if not any(n is h for h in handled)]
        self.disqualify(others, f"used in an unexpected place of {operation(node)}")

    def product(
        self,
        node: fx.Node,
        op: str,
        macs: int,
        out: Tensor | None = None,
        contraction: Tensor | None = None,
    ) -> None:
        """Count a multiply-add-bearing operation, for the example's own batch."""
        if node in self._from_data:
            macs = macs * self.trace.batch // self.trace.instances

        def array(labels: Tensor | None) -> Ids | None:
            return None if labels is None else labels.reshape(-1).long().numpy()

        entry = Product(self.scope(node), op, macs, array(out), array(contraction))
        self.propagation.products.append(entry)

    def layer(self, node: fx.Node, weight: Any, inputs: int, outputs: int) -> Layer:
        """The layer that a product with a weight belongs to, with its faults."""
        scope = self.scope(node)
        name, faults = self._home(weight, scope)
        owner = name.rpartition(".")[0]
        if name and not faults:
            readers = self._readers(weight)
            tied = {alias.rpartition(".")[0] for alias in self.names(weight)}
            if not tied.issuperset(readers):
                faults.append(f"the weight of {owner} is also read outside of it")
            elif readers.count(owner) > 1:
                faults.append(f"{owner} is called {readers.count(owner)} times")
        layer = self.propagation.layer(name or f"%{node.name}", owner or scope, inputs, outputs)
        layer.faults += [fault for fault in faults if fault not in layer.faults]
        return layer

    def own_module(self, node: fx.Node, weight: Any) -> str | None:
        """The module whose only work is this node, if there is one and it runs once."""
        name, faults = self._home(weight, self.scope(node))
        return name.rpartition(".")[0] if not faults and len(self._readers(weight)) == 1 else None

    def _home(self, weight: Any, scope: str) -> tuple[str, list[str]]:
        """The name under which a module uses a weight, and why it is no layer of its own."""
        names = self.names(weight)
        where = scope or "the model"
        if not names:
            return "", [f"the weight that {where} uses is computed, not stored"]
        own = [name for name in names if name.rpartition(".")[0] == scope]
        if not own:
            owner = names[0].rpartition(".")[0]
            return names[0], [f"the weight of {owner} is read outside of it, by {where}"]
        leaf = own[0].rpartition(".")[2]
        if leaf not in {"weight", "running_mean"}:
            return own[0], [f"{where} keeps its weight as {leaf}, not in a linear layer"]
        inside = [op for op in self._operations[scope] if op not in _REARRANGE]
        once_a_call = len(inside) == self._readers(weight).count(scope)
        if not scope or not once_a_call or any(op not in _PRODUCTS for op in inside):
            return own[0], [f"{where} does more than one linear map"]
        return own[0], []

    def _readers(self, weight: fx.Node) -> list[str]:
        """The innermost module of every operation that reads a weight, casts aside."""
        readers: list[str] = []
        todo = list(self._holders[self.names(weight)])
        while todo:
            node = todo.pop()
            for user in node.users:
                owner = user.graph.owning_module
                if user.op == "output" or (owner is not None and self._body(owner, user)):
                    continue  # A wrapped graph has nodes of its own that read it.
                if operation(user) in _COPIES | {"t", "numpy_T", "mT"}:
                    todo.append(user)
                elif operation(user) not in {"_assert_tensor_metadata"}:
                    readers.append(self.scope(user))
        return readers

    # -- the walk itself

    def _graph(self, module: fx.GraphModule, operands: list[Any]) -> list[Tensor | None]:
        last_use: dict[fx.Node, fx.Node] = {}
        idle = _idle(module.graph)
        for node in module.graph.nodes:
            for used in node.all_input_nodes:
                last_use[used] = node
        dying: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        for used, node in last_use.items():
            dying[node].append(used)
        given = iter(operands)
        for node in module.graph.nodes:
            if node.op == "placeholder" and operands:
                source = next(given)
                self._labels[node] = self._labels.get(source)
                self._names[node] = self.names(source)
                self._holders[self._names[node]].append(node)
                if source in self._from_data:
                    self._from_data.add(node)
            elif node.op == "output":
                if operands:
                    outputs = node.args[0]
                    outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
                    return [self.labels(out) for out in outputs]
                self.disqualify(node.all_input_nodes, RETURNED)
            elif node.op == "call_function" and node not in idle:
                if any(used in self._from_data for used in node.all_input_nodes):
                    self._from_data.add(node)
                self._labels[node] = self._step(module, node)
            for used in dying[node]:
                if used.op == "call_function":
                    self._labels.pop(used, None)
        return []

    def _step(self, module: fx.GraphModule, node: fx.Node) -> Labels:
        if node.target is operator.getitem:
            found = self._labels.get(node.args[0])  # type: ignore[arg-type]
            return found[node.args[1]] if isinstance(found, list) else None  # type: ignore[index]
        body = self._body(module, node)
        if body is not None:
            return self._graph(*body)
        name = operation(node)
        rule = self.rules.get(name)
        if rule is None or not hasattr(node.target, "_schema"):
            labelled = [n for n in node.all_input_nodes if self._labels.get(n) is not None]
            self.disqualify(labelled, f"passes through {name}, of which nothing is known")
            return None
        if writes_in_place(node):
            self.disqualify(node.all_input_nodes, f"overwritten in place by {name}")
        try:
            found = rule(self, node)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            # An operation in a form that its rule does not foresee must refuse, never crash.
            logger.debug("no rule for %s", node.format_node(), exc_info=True)
            self.disqualify(node.all_input_nodes, f"passes through {name} in an unknown form")
            return None
        if isinstance(found, list):
            return [_kept(labels) for labels in found]
        return _kept(found)

    def _body(
        self, module: fx.GraphModule, node: fx.Node
    ) -> tuple[fx.GraphModule, list[Any]] | None:
        """The nested graph of a node that only wraps one (autocast, grad mode), and its inputs."""
        for place, argument in enumerate(node.args):
            if isinstance(argument, fx.Node) and argument.op == "get_attr":
                nested = inspect.getattr_static(module, str(argument.target), None)
                if nested is None:
                    nested = module._modules.get(str(argument.target))
                if isinstance(nested, fx.GraphModule) and place + 1 < len(node.args):
                    return nested, list(node.args[place + 1 :])
        return None


def _idle(graph: fx.Graph) -> set[fx.Node]:
    """Return the operations whose results nobody uses, and which change nothing."""
    idle: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        schema = getattr(node.target, "_schema", None)
        pure = node.op == "call_function" and schema is not None and not schema.is_mutable
        if pure and idle.issuperset(node.users):
            idle.add(node)
    return idle


def _kept(labels: Tensor | None) -> Tensor | None:
    """Labels in tidy form, or None where they name nothing."""
    if labels is None:
        return None
    labels = tidy(labels)
    return labels if bool(compact(labels).any()) else None
