"""Segmentation data: layouts on disk, checked reading, augmentation, batches."""

from dynprune.data.layouts import VOID
from dynprune.data.normalise import IMAGENET_MEAN, IMAGENET_STD, normalise
from dynprune.data.pictures import read_label, read_picture, write_label, write_picture
from dynprune.data.segmentation import SegmentationData, open_dataset

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "VOID",
    "SegmentationData",
    "normalise",
    "open_dataset",
    "read_label",
    "read_picture",
    "write_label",
    "write_picture",
]
