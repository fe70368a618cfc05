"""The embedded default: scenes that are drawn, and a small teacher trained on them."""

from dynprune.demo.scenes import make_dataset
from dynprune.demo.teacher import SOURCE, TeacherStep, train_teacher

__all__ = ["SOURCE", "TeacherStep", "make_dataset", "train_teacher"]
