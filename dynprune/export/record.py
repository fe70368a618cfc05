"""What is known of an exported file: how it agrees with its model and how the engine runs it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynprune.export.precision import Product, fallen

__all__ = ["Export"]


@dataclass(frozen=True)
class Export:
    """A file that was written, how well it agrees with its model, and how the engine runs it.

    Attributes:
        path: of the file.
        format: ``onnx`` or ``openvino``.
        precision: of its weights, or of its arithmetic for ``bf16`` and ``int8``.
        inputs: name -> shape; open sizes are strings.
        checked: shapes of the first input of the calls that were compared.
        max_error: largest relative difference from PyTorch.
        products: every product with weights, and the precision that the engine ran it in.
        left_out: products that were kept in float32 in an int8 file.
        accuracy: what was measured of it through the engine; None where nothing was asked for.
    """

    path: Path
    format: str
    precision: str
    inputs: dict[str, tuple[int | str, ...]]
    checked: tuple[tuple[int, ...], ...]
    max_error: float
    products: tuple[Product, ...] = ()
    left_out: tuple[str, ...] = ()
    accuracy: dict[str, float] | None = None

    @property
    def fallen(self) -> tuple[Product, ...]:
        """The products that the engine ran at another precision than was asked for."""
        return tuple(p for p in fallen(self.products, self.precision))

    def warnings(self) -> list[str]:
        """Return sentences on what does not run as it was asked for."""
        notes = []
        chosen = [p for p in self.fallen if p.layer in self.left_out]
        others = [p for p in self.fallen if p.layer not in self.left_out]
        if others:
            pruned = [p for p in others if p.pruned]
            notes.append(
                f"the engine runs {len(others)} of {len(self.products)} products in "
                f"{_precisions(others)}, not in {self.precision}"
                f"{f', {len(pruned)} of them pruned' if pruned else ''}: {_listed(others)}"
            )
        if chosen:
            notes.append(f"left in fp32 on purpose: {_listed(chosen)}")
        if untold := [p for p in self.products if p.precision is None]:
            notes.append(
                f"the engine does not tell how it runs {len(untold)} of {len(self.products)} "
                "products (inside a loop over the batch, or merged with others)"
            )
        return notes

    def to_json(self) -> dict[str, Any]:
        """Return the document of ``dynprune export --json``."""
        return {
            "output": str(self.path),
            "format": self.format,
            "precision": self.precision,
            "inputs": {name: list(shape) for name, shape in self.inputs.items()},
            "checked": [list(shape) for shape in self.checked],
            "max_error": self.max_error,
            "products": [product.to_json() for product in self.products],
            "left_out": list(self.left_out),
            "accuracy": self.accuracy,
            "warnings": self.warnings(),
        }


def _precisions(products: Sequence[Product]) -> str:
    return " and ".join(sorted({str(product.precision) for product in products}))


_SHOWN = 3


def _listed(products: Sequence[Product]) -> str:
    names = [product.layer for product in products]
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
