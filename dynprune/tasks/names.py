"""The tasks by name: of each, a module of this name in this package holds its `Kind`."""

__all__ = ["TASKS"]

TASKS = ("any", "text", "segmentation", "classification", "features")
"""In the order in which they are asked whether they recognise what ``--data`` names."""
