"""Every instance of a batch gets what the model gives it alone."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from dynprune.export.passes.instances import over_instances


def test_the_loop_runs_every_instance_alone() -> None:
    wrapped = over_instances(normalise())
    assert sizes(wrapped) == ["batch", "length"]
    assert [node.op_type for node in wrapped.graph.node].count("Loop") == 1
    for batch in (1, 4):
        assert_normalises(wrapped, batch)


def test_copies_run_every_instance_alone_and_share_the_weights() -> None:
    wrapped = over_instances(normalise(), 3)
    assert sizes(wrapped) == [3, "length"]
    kinds = [node.op_type for node in wrapped.graph.node]
    assert (kinds.count("ReduceMax"), kinds.count("Loop")) == (3, 0)
    assert len({node.name for node in wrapped.graph.node}) == len(kinds) - 1  # two bear none
    assert [weight.name for weight in wrapped.graph.initializer].count("w") == 1
    assert_normalises(wrapped, 3)


def normalise() -> onnx.ModelProto:
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "w"], ["scaled"], name="scale"),
            helper.make_node("ReduceMax", ["scaled"], ["largest"], name="top", keepdims=0),
            helper.make_node("Div", ["scaled", "largest"], ["y"], name="share"),
        ],
        "normalise",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "length"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "length"])],
        initializer=[helper.make_tensor("w", TensorProto.FLOAT, [1], [3.0])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def sizes(model: onnx.ModelProto) -> list[int | str]:
    shape = model.graph.input[0].type.tensor_type.shape
    return [size.dim_param or size.dim_value for size in shape.dim]


def assert_normalises(model: onnx.ModelProto, batch: int) -> None:
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    x = np.random.default_rng(0).uniform(0.5, 1.0, (batch, 6)).astype(np.float32)
    (y,) = session.run(["y"], {"x": x})
    np.testing.assert_allclose(y, x / x.max(1, keepdims=True), rtol=1e-6)
