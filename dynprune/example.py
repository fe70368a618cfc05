"""One call of a model: the arguments that tracing, verification and counting run it with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = ["Example"]


@dataclass(frozen=True)
class Example:
    """Positional and keyword arguments of one call of a model.

    Attributes:
        args: positional arguments; tensors have the batch as their first axis.
        kwargs: keyword arguments, likewise.

    Example:
        >>> Example((torch.zeros(1, 3, 4, 4),)).batched(2).batch
        2
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def run(self, model: nn.Module) -> Any:
        """Call ``model`` with these arguments."""
        return model(*self.args, **self.kwargs)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, in pytree order."""
        leaves = pytree.tree_leaves((self.args, dict(self.kwargs)))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    @property
    def batch(self) -> int:
        """Instances in the call: the first axis of the first tensor that has one."""
        return next((t.shape[0] for t in self.tensors if t.dim()), 1)

    def batched(self, instances: int, *, seed: int = 0) -> "Example":
        """Make a call with ``instances`` different instances out of this one.

        Every tensor whose first axis is the batch is repeated; floating-point tensors then get
        their own noise per instance and integer tensors are shuffled along their last axis (an
        attention mask, all ones or boolean, stays as it is), so that no two instances agree.

        Args:
            instances: batch of the new call.
            seed: of the noise.
        """
        generator = torch.Generator().manual_seed(seed)
        batch = self.batch

        def spread(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not leaf.dim() or leaf.shape[0] != batch:
                return leaf
            repeats = -(-instances // batch)
            wide = leaf.repeat(repeats, *[1] * (leaf.dim() - 1))[:instances].clone()
            if wide.is_floating_point():
                noise = torch.randn(wide.shape, generator=generator).to(wide)
                return wide + noise * wide.std().clamp_min(0.1)
            if wide.dtype != torch.bool and wide.dim() > 1 and wide.max() > 1:
                for row in range(instances):
                    order = torch.randperm(wide.shape[-1], generator=generator)
                    wide[row] = wide[row][..., order.to(wide.device)]
            return wide

        args, kwargs = pytree.tree_map(spread, (self.args, dict(self.kwargs)))
        return Example(args, kwargs)

    def to(self, device: torch.device | str) -> "Example":
        """Move every tensor to ``device``."""
        move = pytree.tree_map_only(Tensor, lambda t: t.to(device), (self.args, dict(self.kwargs)))
        return Example(*move)
