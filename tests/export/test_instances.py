"""A loop over instances gives each of them what the model gives it alone."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from dynprune.export.instances import over_instances


def test_the_loop_runs_every_instance_alone() -> None:
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "w"], ["scaled"]),
            helper.make_node("ReduceMax", ["scaled"], ["largest"], keepdims=0),
            helper.make_node("Div", ["scaled", "largest"], ["y"]),
        ],
        "normalise",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "length"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "length"])],
        initializer=[helper.make_tensor("w", TensorProto.FLOAT, [1], [3.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    wrapped = over_instances(model)
    assert [d.dim_param for d in wrapped.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        "length",
    ]
    session = onnxruntime.InferenceSession(wrapped.SerializeToString())
    for batch in (1, 4):
        x = rng.uniform(0.5, 1.0, (batch, 6)).astype(np.float32)
        (y,) = session.run(["y"], {"x": x})
        np.testing.assert_allclose(y, x / x.max(1, keepdims=True), rtol=1e-6)
    onnx.checker.check_model(wrapped)
