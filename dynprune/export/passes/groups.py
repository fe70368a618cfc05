"""Write products of rows that are sorted by expert as one product for each expert, in ONNX."""

from typing import Any

from onnxscript import opset18 as op

__all__ = ["sorted_product"]

_INT64 = 7


def sorted_product(
    rows: Any, weights: Any, offs: Any = None, bias: Any = None, out_dtype: Any = None
) -> Any:
    """Translate torch's grouped product: rows (n, in), weights (M, in, out), ends (M,) to (n, out).

    Every expert's weight is a constant of a product of its own. How many rows it gets is only known
    when the file runs.
    """
    assert offs is not None and bias is None and out_dtype is None
    ends = op.Cast(offs, to=_INT64)
    axis = op.Constant(value_ints=[0])
    start, parts = axis, []
    for m in range(weights.shape[0]):
        end = op.Gather(ends, op.Constant(value_ints=[m]), axis=0)  # (1,)
        weight = op.Gather(weights, op.Constant(value_int=m), axis=0)  # folded: weights are fixed
        parts.append(op.MatMul(op.Slice(rows, start, end, axis), weight))
        start = end
    return op.Concat(*parts, axis=0)
