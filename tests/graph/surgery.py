"""Take neurons out of a model, or let them make noise, and see what its output does."""

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dynprune.example import Example
from dynprune.graph import Channels, NeuronGroup


def outputs(model: nn.Module, example: Example) -> list[Tensor]:
    with torch.no_grad():
        leaves = pytree.tree_leaves(precise(example).run(model))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def precise(example: Example) -> Example:
    """An example in float64, in which rounding cannot hide or feign a change."""

    def widen(leaf: Tensor) -> Tensor:
        return leaf.double() if leaf.is_floating_point() else leaf

    return Example(*pytree.tree_map_only(Tensor, widen, (example.args, dict(example.kwargs))))


def close(a: list[Tensor], b: list[Tensor]) -> bool:
    # Sums of float64 in another order round at 1e-15 of the largest value.
    return all((x - y).abs().max() <= 1e-11 * y.abs().max() for x, y in zip(a, b, strict=True))


def mask(model: nn.Module, group: NeuronGroup, gone: Tensor) -> None:
    """Zero consumer columns in place; for queries and keys, the rows of every producer."""
    for channels in group.consumers:
        weight = model.get_submodule(channels.module).weight
        axis = 0 if transposed(model, channels.module) else 1
        weight.data.index_fill_(axis, channels.index[gone].flatten(), 0.0)
    if group.kind == "qk":
        for channels in group.producers:
            change_rows(model, channels, gone, lambda rows: rows.zero_())


def scramble(model: nn.Module, group: NeuronGroup, gone: Tensor, gain: float = 1.0) -> None:
    """Randomise producers and carriers in place; of queries and keys, a query row alone."""
    torch.manual_seed(1)

    def noise(rows: Tensor) -> Tensor:
        return rows.copy_(torch.randn_like(rows) * gain)

    if group.kind != "qk":
        for channels in (*group.producers, *group.carriers):
            change_rows(model, channels, gone, noise)
        return
    first = group.producers[0]
    change_rows(model, Channels(first.module, first.index[:, :1], first.size), gone, noise)


def change_rows(model: nn.Module, channels, gone: Tensor, change) -> None:
    module = model.get_submodule(channels.module)
    rows = channels.index[gone].flatten()
    axis = 1 if transposed(model, channels.module) else 0
    with torch.no_grad():
        taken = module.weight.index_select(axis, rows)
        module.weight.index_copy_(axis, rows, change(taken))
        if module.bias is not None:
            module.bias.index_copy_(0, rows, change(module.bias.index_select(0, rows)))


def transposed(model: nn.Module, name: str) -> bool:
    return type(model.get_submodule(name)).__name__ == "Conv1D"
