"""Weights that are gathered from are stored as bfloat16, and nothing else changes."""

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from dynprune.export.passes.bfloat16 import gathered_in_bfloat16


def test_gathered_weights_are_rounded_as_torch_rounds_and_others_stay() -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((6, 3)).astype(np.float32)
    both = rng.standard_normal((6, 3)).astype(np.float32)
    new = gathered_in_bfloat16(model(table, both))
    kinds = {weight.name: weight.data_type for weight in new.graph.initializer}
    assert kinds == {"table": TensorProto.BFLOAT16, "both": TensorProto.FLOAT}
    onnx.checker.check_model(new)
    session = onnxruntime.InferenceSession(new.SerializeToString())
    index = np.array([4, 1])
    (y,) = session.run(["y"], {"index": index})
    rounded = torch.from_numpy(table).bfloat16().float().numpy()
    # Rounding to bfloat16 is some 1e-3; additions in another order are 1e-6.
    np.testing.assert_allclose(y, rounded[index] + both[index] + both.sum(), atol=1e-5)


def model(table: np.ndarray, both: np.ndarray) -> onnx.ModelProto:
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "index"], ["a"], "first"),
            helper.make_node("Gather", ["both", "index"], ["b"], "second"),
            helper.make_node("ReduceSum", ["both"], ["sum"], keepdims=0),
            helper.make_node("Add", ["a", "b"], ["ab"]),
            helper.make_node("Add", ["ab", "sum"], ["y"]),
        ],
        "gathers",
        [helper.make_tensor_value_info("index", TensorProto.INT64, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
        initializer=[
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(both, "both"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
