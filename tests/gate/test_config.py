"""How a gate is built, as plain values."""

import json

from dynprune.gate.config import GateConfig


def test_a_configuration_is_the_same_after_json():
    config = GateConfig(prune_ratio=0.3, mode="straight_through", hidden=12, pool="mean-max")
    assert GateConfig(**json.loads(json.dumps(config.to_json()))) == config
