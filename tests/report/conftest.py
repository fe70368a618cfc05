"""A tiny student beside its teacher, measured once on pictures of noise in two worlds."""

from dataclasses import dataclass
from xml.etree import ElementTree

import pytest
import torch

from dynprune.data import Preprocessing, SegmentationData, open_dataset
from dynprune.example import Example
from dynprune.gate import gates
from dynprune.models import LoadedModel, source_of
from dynprune.report.results import Results, gather
from tests.data.scenes import labels, picture, write_png
from tests.distill import tiny

NAMES = ("dark_0", "dark_1", "light_0", "light_1")
CLASSES = ("sky", "sea", "land")
PICTURES = Preprocessing()


def noise(root, names=NAMES, classes=CLASSES) -> SegmentationData:
    """Write pictures of the tiny model's size, half of each label void."""
    size = (tiny.SIZE, tiny.SIZE)
    for index, name in enumerate(names):
        write_png(root / f"images/val/{name}.png", picture(index, size) // (1 + index // 2))
        label = labels(index, len(classes), size)
        label[: tiny.SIZE // 2] = 255
        write_png(root / f"annotations/val/{name}.png", label)
    (root / "classes.txt").write_text("\n".join(classes) + "\n")
    return open_dataset(root, "val")


@dataclass(frozen=True)
class Measured:
    """A pair of models, their data, and what was found."""

    student: LoadedModel
    teacher: LoadedModel
    data: SegmentationData
    found: Results


def marks_of(drawing) -> list[tuple[float, str]]:
    """Place, in percent, and style of every mark."""
    root = ElementTree.fromstring(drawing.__html__())
    return [(float(m.get("x")[:-1]), m.find("path").get("class")) for m in root.findall("svg")]


def loaded(module, name) -> LoadedModel:
    example = Example((torch.zeros(1, 3, tiny.SIZE, tiny.SIZE),))
    return LoadedModel(module, example, source_of(module), CLASSES, name)


@pytest.fixture(scope="session")
def pair() -> tuple[LoadedModel, LoadedModel]:
    """A student whose gates depend on the picture, and its folded teacher."""
    torch.manual_seed(0)
    teacher = tiny.folded_teacher()
    student = tiny.gated(teacher).eval()
    for gate in gates(student).values():
        torch.nn.init.normal_(gate.predictor.up.weight)
    return loaded(student, "student"), loaded(teacher, "teacher")


@pytest.fixture(scope="session")
def measured(pair, tmp_path_factory) -> Measured:
    data = noise(tmp_path_factory.mktemp("noise"))
    student, teacher = pair
    return Measured(
        student, teacher, data, gather(student, data, teacher=teacher, preprocessing=PICTURES)
    )
