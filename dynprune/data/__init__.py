"""Data: layouts on disk, checked reading, augmentation, batches."""

from dynprune.data.augment import augment
from dynprune.data.balance import class_shares, inverse_root_weights
from dynprune.data.layouts import Layout, LayoutReader, find_layout
from dynprune.data.masks import check_masks
from dynprune.data.normalise import IMAGENET_MEAN, IMAGENET_STD, normalise
from dynprune.data.pictures import read_label, read_picture, write_label, write_picture
from dynprune.data.preprocessing import Preprocessing, Resize
from dynprune.data.processor import (
    PROCESSOR_FILE,
    ImageProcessor,
    is_of_pictures,
    read_processor,
)
from dynprune.data.sampling import TrainingBatches, training_batch, training_batches
from dynprune.data.segmentation import SegmentationData, numbered_classes, open_dataset
from dynprune.data.values import VOID, LabelValues

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "PROCESSOR_FILE",
    "VOID",
    "ImageProcessor",
    "LabelValues",
    "Layout",
    "LayoutReader",
    "Preprocessing",
    "Resize",
    "SegmentationData",
    "TrainingBatches",
    "augment",
    "check_masks",
    "class_shares",
    "find_layout",
    "inverse_root_weights",
    "is_of_pictures",
    "normalise",
    "numbered_classes",
    "open_dataset",
    "read_label",
    "read_picture",
    "read_processor",
    "training_batch",
    "training_batches",
    "write_label",
    "write_picture",
]
