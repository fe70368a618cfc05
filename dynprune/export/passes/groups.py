"""Write products of rows that are sorted by expert as one product for each expert, in ONNX."""

from typing import Any

from onnxscript import opset18

__all__ = ["sorted_product"]

_INT64 = 7
_OP: Any = opset18  # its stubs know the types of tensors that are written out, not of traced ones


def sorted_product(rows: Any, weight: Any, bias: Any, ends: Any) -> Any:
    """Translate `dynprune.gate.expert_products.sorted_product`.

    Every expert's weight is a constant of a product of its own. How many rows it gets is only known
    when the file runs.
    """
    ends = _OP.Cast(ends, to=_INT64)
    axis = _OP.Constant(value_ints=[0])
    start, parts = axis, []
    for m in range(weight.shape[0]):
        end = _OP.Gather(ends, _OP.Constant(value_ints=[m]), axis=0)  # (1,)
        one = _OP.Constant(value_int=m)
        own = _OP.Transpose(_OP.Gather(weight, one, axis=0), perm=[1, 0])  # folded: it is fixed
        part = _OP.MatMul(_OP.Slice(rows, start, end, axis), own)
        parts.append(part if bias is None else _OP.Add(part, _OP.Gather(bias, one, axis=0)))
        start = end
    return _OP.Concat(*parts, axis=0)
