"""Einstein sums of two tensors, read by their letters."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dynprune.gate.slots import KeptSlots, along

__all__ = ["Equation", "equation_of"]


@dataclass(frozen=True)
class Equation:
    """An Einstein sum of two tensors, by its letters: ``bhid,bhjd->bhij``."""

    inputs: tuple[str, str]
    output: str

    @property
    def text(self) -> str:
        """The equation."""
        return f"{','.join(self.inputs)}->{self.output}"

    @property
    def shared(self) -> str:
        """Axes of both tensors that are left: the batch, or batch and heads."""
        first, second = self.inputs
        return "".join(c for c in first if c in second and c in self.output)

    @property
    def summed(self) -> str:
        """Axes that are summed over."""
        first, second = self.inputs
        return "".join(c for c in first if c in second and c not in self.output)

    @property
    def passed(self) -> str:
        """Axes that the second tensor alone has."""
        first, second = self.inputs
        return "".join(c for c in second if c not in first and c in self.output)

    def along(
        self, kept: KeptSlots, place: int, shape: Sequence[int], channel: str
    ) -> Tensor | None:
        """Return the index that gathers the kept channels of a tensor, as `along` does."""
        letters = (*self.inputs, self.output)[place]
        lead = [letters.index(letter) for letter in self.shared]
        axis = letters.index(channel)
        if not 1 <= len(lead) <= 2 or lead != sorted(lead):
            return None
        sizes = [shape[a] for a in lead]
        index = along(kept, (*sizes, 1, shape[axis]), -1)
        if index is None or (len(sizes) == 2 and sizes[1] != kept.slots.shape[1]):
            return None
        view = [1] * len(shape)
        for at, size in zip(lead, sizes, strict=True):
            view[at] = size
        view[axis] = index.shape[-1]
        if lead[-1] > axis:
            return None
        full = [index.shape[-1] if a == axis else size for a, size in enumerate(shape)]
        return index.reshape(view).expand(full)


def equation_of(args: tuple[Any, ...]) -> Equation | None:
    """Read a call of `torch.einsum` of two tensors, or return None for any other form."""
    if (
        len(args) != 3
        or not isinstance(args[0], str)
        or not all(isinstance(x, Tensor) for x in args[1:])
    ):
        return None
    inputs, arrow, output = args[0].replace(" ", "").partition("->")
    terms = inputs.split(",")
    plain = all(term.isalpha() and len(set(term)) == len(term) for term in (*terms, output))
    if not arrow or not plain or len(terms) != 2:
        return None
    return Equation((terms[0], terms[1]), output)
