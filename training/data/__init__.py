"""MNIST images: their sources, their names in results, and their augmentation."""

from training.data.mnist import (
    CLASSES,
    IMAGE_SHAPE,
    PIXEL_MEAN,
    PIXEL_STD,
    DataError,
    Dataset,
    LabelledImages,
    fingerprint,
    load_dataset,
    split_validation,
    standardise,
    to_ink,
    to_pixels,
    validation_size,
)

__all__ = [
    "CLASSES",
    "IMAGE_SHAPE",
    "PIXEL_MEAN",
    "PIXEL_STD",
    "DataError",
    "Dataset",
    "LabelledImages",
    "fingerprint",
    "load_dataset",
    "split_validation",
    "standardise",
    "to_ink",
    "to_pixels",
    "validation_size",
]
