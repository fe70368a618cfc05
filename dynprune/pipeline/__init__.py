"""The flow from a model to a gated student and its training, one step a function."""

from dynprune.pipeline.apply import apply_recipe, calibration_calls, restore
from dynprune.pipeline.check import CheckReport, check_calls, check_model
from dynprune.pipeline.inspect import Inspection, inspect_model
from dynprune.pipeline.train import distill, learn, make_teacher, settle_classes

__all__ = [
    "CheckReport",
    "Inspection",
    "apply_recipe",
    "calibration_calls",
    "check_calls",
    "check_model",
    "distill",
    "inspect_model",
    "learn",
    "make_teacher",
    "restore",
    "settle_classes",
]
