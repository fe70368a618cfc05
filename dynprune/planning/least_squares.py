"""Linear least squares from second moments, held to the weights that there are."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["RIDGE", "Moments"]

RIDGE = (
    3e-3  # of the mean square of an input that counts: how firmly weights hold to what they were
)


@dataclass
class Moments:
    r"""Second moments of what a linear layer multiplies, z, with what it should give, t.

    Whatever z is: masked by one mask for each input or each token, of all tokens or of those that
    one expert gets. Sums over tokens; several may be added up.

    Attributes:
        square: (inputs, inputs) of z with z.
        across: (outputs, inputs) of t with z.
        inputs: (inputs,) of z.
        outputs: (outputs,) of t.
        tokens: their number.
    """

    square: Tensor
    across: Tensor
    inputs: Tensor
    outputs: Tensor
    tokens: int = 0

    @classmethod
    def empty(cls, inputs: int, outputs: int, device: torch.device | None = None) -> "Moments":
        """Return moments of no tokens."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        return cls(zeros(inputs, inputs), zeros(outputs, inputs), zeros(inputs), zeros(outputs))

    def add(self, z: Tensor, t: Tensor) -> None:
        """Add tokens, in place.

        Args:
            z: (tokens, inputs).
            t: (tokens, outputs).
        """
        live = (z != 0).any(0).nonzero().flatten()  # where most are masked, that is cheaper
        kept = z[:, live]
        self.square[live[:, None], live] += (kept.t() @ kept).double()
        self.across[:, live] += (t.t() @ kept).double()
        self.inputs += z.sum(0, dtype=torch.float64)
        self.outputs += t.sum(0, dtype=torch.float64)
        self.tokens += len(z)

    def solve(
        self, weight: Tensor, ridge: float = RIDGE, *, bias: bool = True
    ) -> tuple[Tensor, Tensor] | None:
        r"""Return the weight and the bias, float64, that come nearest to what should be given.

        .. math:: \min_{W', b'} \; \mathrm{mean} \, \| t - W' z - b' \|^2
            + \lambda \| W' - W \|^2

        Args:
            weight: W, (outputs, inputs).
            ridge: lambda, over the mean square of an input that is not always zero.
            bias: whether there is a b'; else it is zero.

        Returns:
            W' (outputs, inputs) and b' (outputs,); None where z is always the same, or a moment is
            no number. Columns of inputs that are always zero are those of W.
        """
        weight, count = weight.double(), max(1, self.tokens)
        z, t = self.inputs / count, self.outputs / count
        square, across = self.square / count, self.across / count
        if bias:
            square, across = square - z.outer(z), across - t.outer(z)
        live = (self.square.diagonal() > 0).nonzero().flatten()
        square, across = square[live[:, None], live], across[:, live]
        hold = ridge * square.diagonal().clamp_min(0).mean() if len(live) else 0.0
        if not (hold > 0 and bool(across.isfinite().all())):
            return None
        system = square + hold * torch.eye(len(square), dtype=square.dtype, device=square.device)
        new = weight.clone()
        new[:, live] = torch.linalg.solve(system, (across + hold * weight[:, live]).t()).t()
        return new, (t - new @ z if bias else torch.zeros_like(t))
