"""Images in: readers for every layout, transforms, and batches that are the same however they are loaded."""

from snella.data.cache import TensorCache, cache_folder, content_key, image_key
from snella.data.dataset import ImageData, Images, class_weights
from snella.data.images import UnreadableImage, check_images, image_files, open_image
from snella.data.loading import Batches
from snella.data.masks.files import IGNORE, MaskCode, MaskData, MaskedImages, read_mask
from snella.data.readers.captioned import (
    CaptionedImages,
    is_captioned,
    read_captioned_data,
    read_captioned_test_data,
)
from snella.data.readers.labelled import read_data, read_test_data
from snella.data.readers.masked import is_masked, read_masked_data, read_masked_test_data
from snella.data.summaries.captioned import describe_captioned
from snella.data.summaries.labelled import data_report, describe
from snella.data.summaries.masked import describe_masked
from snella.data.transforms.generation import generation_eval_transform, generation_train_transform
from snella.data.transforms.images import (
    Augmentation,
    Preprocessing,
    Transform,
    eval_transform,
    train_transform,
)
from snella.data.transforms.masked import masked_eval_transform, masked_train_transform

__all__ = [
    "IGNORE",
    "Augmentation",
    "Batches",
    "CaptionedImages",
    "ImageData",
    "Images",
    "MaskCode",
    "MaskData",
    "MaskedImages",
    "Preprocessing",
    "TensorCache",
    "Transform",
    "UnreadableImage",
    "cache_folder",
    "check_images",
    "class_weights",
    "content_key",
    "data_report",
    "describe",
    "describe_captioned",
    "describe_masked",
    "eval_transform",
    "generation_eval_transform",
    "generation_train_transform",
    "image_files",
    "image_key",
    "is_captioned",
    "is_masked",
    "masked_eval_transform",
    "masked_train_transform",
    "open_image",
    "read_captioned_data",
    "read_captioned_test_data",
    "read_data",
    "read_mask",
    "read_masked_data",
    "read_masked_test_data",
    "read_test_data",
    "train_transform",
]
