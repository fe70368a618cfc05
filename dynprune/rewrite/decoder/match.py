"""Recognise, in a head's ATen graph, projected maps that are concatenated and then fused."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.nn.modules.batchnorm import _BatchNorm

from dynprune.rewrite.decoder.structure import ELEMENTWISE, Branch, DecoderStructure, Step

__all__ = ["NotFoldableError", "match_decoder"]

_PROJECTIONS = {"linear", "conv2d"}
_MOVEMENTS = {
    *("alias", "clone", "contiguous", "flatten", "permute", "reshape", "squeeze", "transpose"),
    *("unflatten", "unsqueeze", "view", "_unsafe_view"),
}
_RESIZES: Mapping[str, tuple[str, bool]] = {
    "upsample_nearest2d": ("nearest", False),
    "_upsample_nearest_exact2d": ("nearest-exact", False),
    "upsample_bilinear2d": ("bilinear", False),
    "_upsample_bilinear2d_aa": ("bilinear", True),
    "upsample_bicubic2d": ("bicubic", False),
    "_upsample_bicubic2d_aa": ("bicubic", True),
}


class NotFoldableError(ValueError):
    """The head is not one that can be folded without a change of its function; says why."""


def match_decoder(head: nn.Module, program: ExportedProgram) -> DecoderStructure:
    """Read the structure of a foldable head out of its graph; no name plays a part.

    The whole graph must be: inputs, [movement], projection, [movement], [resize], concatenation,
    [movement], fusing 1x1 map, [movement], [BatchNorm], a chain of modules and elementwise
    functions, the one output.

    Args:
        head: the module that was exported.
        program: its export in evaluation mode.

    Returns:
        What the head is made of.

    Raises:
        NotFoldableError: the head is anything else; the message names the first misfit.
    """
    return _Matcher(head, program).match()


class _Matcher:
    def __init__(self, head: nn.Module, program: ExportedProgram) -> None:
        self.head = head
        self.graph = program.graph
        self.graph.eliminate_dead_code()
        self.parameters = dict(program.graph_signature.inputs_to_parameters)
        inputs = program.graph_signature.input_specs
        users = [spec for spec in inputs if spec.kind == InputKind.USER_INPUT]
        self.leaves = {spec.arg.name: position for position, spec in enumerate(users)}
        self.seen: set[fx.Node] = set()

    def match(self) -> DecoderStructure:
        cat, fuse = self._concatenation()
        branches, sizes, start = [], [], 0
        for part in cat.args[0]:  # type: ignore[union-attr]
            branch, size, start = self._branch(part, start)  # type: ignore[arg-type]
            branches.append(branch)
            sizes.append(size)
        fuse_name, columns = self._pointwise(fuse)
        if columns != start:
            raise NotFoldableError(
                f"the projections make {start} channels but {fuse_name} reads {columns}"
            )
        out = _value(fuse).shape[1] if _name(fuse) == "conv2d" else _value(fuse).shape[-1]
        for branch in branches:
            width = branch.columns[1] - branch.columns[0]
            narrow = min(_value_of(self.head, branch.projection).shape[1], out)
            if width < narrow:
                raise NotFoldableError(
                    f"{branch.projection} is a bottleneck of {width} channels, which one matrix"
                    f" could leave in training (it would need {narrow})"
                )
        norm, tail = self._tail(fuse)
        branches.sort(key=lambda branch: branch.leaf)
        structure = DecoderStructure(
            tuple(branches), self._size_leaf(branches, sizes), fuse_name, norm, tail
        )
        self._check_complete()
        return structure

    def _concatenation(self) -> tuple[fx.Node, fx.Node]:
        """Find the concatenation, and the projection that reads it."""
        reasons = []
        for cat in self.graph.nodes:
            if _name(cat) != "cat" or len(cat.args[0]) < 2:
                continue
            self.seen = {cat}
            node = self._skip_movement(self._only_user(cat))
            if _name(node) in _PROJECTIONS:
                return cat, node
            reasons.append(f"its concatenation is read by {_describe(node)}, not by a 1x1 map")
        raise NotFoldableError(reasons[0] if reasons else "it concatenates nothing")

    def _branch(self, node: fx.Node, start: int) -> tuple[Branch, tuple[int, ...], int]:
        """Walk from one input of the concatenation back to the map that it comes from."""
        mode, align, antialias = None, None, False
        size: tuple[int, ...] = ()
        width = 0
        while True:
            if len(node.users) > 1:
                raise NotFoldableError(f"{_describe(node)} in a branch is used more than once")
            self.seen.add(node)
            name = _name(node)
            if name in _RESIZES:
                if mode is not None:
                    raise NotFoldableError("a branch is resized twice")
                mode, antialias = _RESIZES[name]
                align = None if "nearest" in mode else bool(node.args[2])
                size = tuple(_value(node).shape[2:])
            elif name in _PROJECTIONS:
                break
            elif name not in _MOVEMENTS:
                raise NotFoldableError(
                    f"{_describe(node)} stands between a projection and the concatenation"
                )
            node = _input(node)
        projection, _ = self._pointwise(node)
        width = _value_of(self.head, projection).shape[0]
        source = _input(node)
        while _name(source) in _MOVEMENTS:
            self.seen.add(source)
            source = _input(source)
        leaf = self.leaves.get(source.name)
        if leaf is None:
            raise NotFoldableError(f"{projection} reads {_describe(source)}, not an input")
        stage = _value(source)
        if stage.dim() != 4 or stage.shape[1] != _value_of(self.head, projection).shape[1]:
            raise NotFoldableError(
                f"{projection} reads a {tuple(stage.shape)} input, not a map (B, C, H, W)"
            )
        branch = Branch(leaf, projection, (start, start + width), mode, align, antialias)
        return branch, size or tuple(stage.shape[2:]), start + width

    def _size_leaf(self, branches: list[Branch], sizes: list[tuple[int, ...]]) -> int:
        """Find the input whose size the branches are resized to."""
        target = sizes[0]
        if any(size != target for size in sizes):
            raise NotFoldableError(f"its branches have different sizes: {sizes}")
        unresized = [branch.leaf for branch in branches if branch.mode is None]
        maps = {self.leaves[n.name]: n for n in self.graph.nodes if n.name in self.leaves}
        for leaf in [*unresized, *(branch.leaf for branch in branches)]:
            if tuple(_value(maps[leaf]).shape[2:]) == target:
                return leaf
        raise NotFoldableError(f"no input has the size {target} that the branches are resized to")

    def _tail(self, node: fx.Node) -> tuple[str | None, tuple[Step, ...]]:
        """Follow the fused map to the output: BatchNorm first, then modules and functions."""
        norm: str | None = None
        tail: list[Step] = []
        while True:
            node = self._only_user(node)
            if node.op == "output":
                return norm, tuple(tail)
            self.seen.add(node)
            name, owner = _name(node), _owner(node)
            module = self.head.get_submodule(owner)
            if name in _MOVEMENTS and (not owner or next(module.children(), None) is not None):
                continue
            others = [n for n in node.all_input_nodes if n.op != "placeholder"]
            if len(others) != 1 or any(n.name in self.leaves for n in node.all_input_nodes):
                raise NotFoldableError(f"{_describe(node)} reads more than the fused map")
            if owner and next(module.children(), None) is None:
                if isinstance(module, _BatchNorm) and norm is None and not tail:
                    norm = owner
                elif not tail or tail[-1].module != owner:
                    tail.append(Step(module=owner))
            elif name.removesuffix("_") in ELEMENTWISE:
                scalars = tuple(a for a in node.args[1:] if isinstance(a, int | float | str))
                if node.kwargs or len(scalars) != len(node.args) - 1:
                    raise NotFoldableError(f"{_describe(node)} has arguments that are not scalars")
                tail.append(Step(function=name.removesuffix("_"), arguments=scalars))
            else:
                raise NotFoldableError(f"{_describe(node)} follows the fusing layer")

    def _pointwise(self, node: fx.Node) -> tuple[str, int]:
        """Return the name and input width of the linear or 1x1 convolution that ``node`` runs."""
        owner = _owner(node)
        module = self.head.get_submodule(owner)
        weight = node.args[1]
        assert isinstance(weight, fx.Node)
        if type(module) not in (nn.Linear, nn.Conv2d):
            raise NotFoldableError(f"{_describe(node)} is not a plain nn.Linear or nn.Conv2d")
        if self.parameters.get(weight.name) != f"{owner}.weight":
            raise NotFoldableError(f"{owner} does not use a weight of its own")
        if len(weight.users) > 1:
            raise NotFoldableError(f"{owner} runs more than once")
        if isinstance(module, nn.Conv2d):
            if module.kernel_size != (1, 1):
                kernel = "x".join(map(str, module.kernel_size))
                raise NotFoldableError(f"{owner} is a {kernel} convolution, not a 1x1 map")
            if (
                module.stride != (1, 1)
                or module.groups != 1
                or module.padding not in ((0, 0), "same", "valid")
            ):
                raise NotFoldableError(f"{owner} has a stride, groups or padding")
        self.seen.add(node)
        return owner, _value(weight).shape[1]

    def _skip_movement(self, node: fx.Node) -> fx.Node:
        while _name(node) in _MOVEMENTS:
            self.seen.add(node)
            node = self._only_user(node)
        return node

    def _only_user(self, node: fx.Node) -> fx.Node:
        if len(node.users) != 1:
            raise NotFoldableError(f"{_describe(node)} is used {len(node.users)} times, not once")
        return next(iter(node.users))

    def _check_complete(self) -> None:
        for node in self.graph.nodes:
            if node.op == "call_function" and node not in self.seen:
                raise NotFoldableError(f"it does more than fuse maps: {_describe(node)}")


def _name(node: fx.Node) -> str:
    """Return the operator's name without its overload, or "" for what is not an ATen operator."""
    target = node.target
    return target._schema.name.split("::")[1] if isinstance(target, torch._ops.OpOverload) else ""


def _owner(node: fx.Node) -> str:
    """Name the innermost module that ran the node; "" is the head itself."""
    stack: Mapping[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    return list(stack.values())[-1][0].split("@")[0] if stack else ""


def _describe(node: fx.Node) -> str:
    if node.op != "call_function":
        return "an input" if node.op == "placeholder" else "the output"
    owner = _owner(node)
    return f"{_name(node) or node.name}{f' ({owner})' if owner else ''}"


def _input(node: fx.Node) -> fx.Node:
    first = node.args[0]
    if not isinstance(first, fx.Node):
        raise NotFoldableError(f"{_describe(node)} stands in a branch")
    return first


def _value(node: fx.Node) -> Tensor:
    return node.meta["val"]


def _value_of(head: nn.Module, projection: str) -> Tensor:
    weight = head.get_submodule(projection).weight
    assert isinstance(weight, Tensor)
    return weight
