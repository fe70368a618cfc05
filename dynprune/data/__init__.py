"""Segmentation data: layouts on disk, checked reading, augmentation, batches."""

from dynprune.data.augment import augment
from dynprune.data.balance import class_shares, inverse_root_weights
from dynprune.data.layouts import VOID, Layout, LayoutReader, find_layout
from dynprune.data.normalise import IMAGENET_MEAN, IMAGENET_STD, normalise
from dynprune.data.pictures import read_label, read_picture, write_label, write_picture
from dynprune.data.sampling import TrainingBatches, training_batch, training_batches
from dynprune.data.segmentation import SegmentationData, open_dataset

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "VOID",
    "Layout",
    "LayoutReader",
    "SegmentationData",
    "TrainingBatches",
    "augment",
    "class_shares",
    "find_layout",
    "inverse_root_weights",
    "normalise",
    "open_dataset",
    "read_label",
    "read_picture",
    "training_batch",
    "training_batches",
    "write_label",
    "write_picture",
]
