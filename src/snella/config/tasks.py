"""The tasks, a row each, and the settings that one task alone reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from snella.config.fields import above, at_least, between, from_below, setting

Loss = Literal["ce", "dice", "ce+dice"]
Decoder = Literal["plain", "unet", "fpn", "upernet", "segformer", "dpt"]

# name -> the object that is the task (`snella.tasks.interface.Task`), imported late. In the order of the choices.
TASKS: dict[str, object] = {
    "classify": "snella.tasks.classification.task:CLASSIFICATION",
    "multilabel": "snella.tasks.multilabel.task:MULTILABEL",
    "regress": "snella.tasks.regression.task:REGRESSION",
    "segment": "snella.tasks.segmentation.task:SEGMENTATION",
    "generate": "snella.tasks.generation.task:GENERATION",
}
LABELLED = ("classify", "segment")  # tasks whose images have classes, or pixels do
WHOLE_IMAGE = ("classify", "multilabel", "regress")  # tasks that say something of an image as a whole
LOOKING = (*WHOLE_IMAGE, "segment")  # tasks that look at images
Tta = Literal["none", "flip"]
Separator = Literal[";", "|", ",", "space", "none"]


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig:
    """What classification reads, and of it what other tasks read as well (`tasks`)."""

    label_column: str | None = setting(None, tasks=("classify", "multilabel"))
    """Column of a table or list of images that holds their labels, to classify: its name or its number, 0 being the
    first. None: label or class; of a list the first after the image, if it divides the classes of all others.
    To label (--task multilabel) also several, with commas between them, of 0 and 1."""
    label_pattern: str | None = setting(None, tasks=("classify", "regress"))
    """What the label of an image is, to classify, or its number (--task regress), by a regular expression that is
    searched for in its path below the data: the group called label, else the first in parentheses, or all that it
    matches, such as '([0-9]+)_[01]_' for an age. Images that it does not match are left out."""
    crops: bool = setting(False)
    """Cut the boxes of a detection data set (Pascal VOC, COCO, YOLO) out as images of their classes, to classify."""
    head_first: bool = setting(False, tasks=WHOLE_IMAGE)
    """Fit the head to the features of the frozen backbone before the training, as a linear model whose L2 penalty is
    chosen on val, not to segment or to generate. Off as published."""
    tta: Tta = setting("none", tasks=WHOLE_IMAGE)
    """Test-time augmentation, not to segment or to generate: flip takes the mean of the logits of an image and of its
    mirror image, in evaluations and predictions, for twice their time. A merged model sees an image once."""
    mixup: float = setting(0.0, at_least(0))
    """Alpha of mixup's beta distribution, to classify; 0 is off, as published."""
    cutmix: float = setting(0.0, at_least(0))
    """Alpha of CutMix's beta distribution, to classify; 0 is off, as published."""
    auto_augment: str | None = setting(None, tasks=WHOLE_IMAGE)
    """A timm policy such as rand-m9-mstd0.5-inc1, original or augmix-m5-w4, not to segment or to generate. Off as
    published."""
    random_erasing: float = setting(0.0, between(0, 1), tasks=WHOLE_IMAGE)
    """Share of the training images that get a rectangle erased, not to segment or to generate, 0 to 1. Off as
    published."""


@dataclass(frozen=True, kw_only=True)
class MultilabelConfig:
    """What multi-label classification alone reads."""

    label_separator: Separator | None = setting(None)
    """What divides the labels in a cell of a table, for --task multilabel; none: a cell is one label.
    None: found, where it is sure."""


@dataclass(frozen=True, kw_only=True)
class RegressConfig:
    """What regression alone reads."""

    target_column: str | None = setting(None)
    """Column of a table that holds the number to learn, for --task regress, or several with commas between them: names,
    or numbers, 0 being the first column. None: the one column of numbers, or the one called target, value or label."""


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """What segmentation alone reads."""

    decoder: Decoder | None = setting(None)
    """What makes a map of classes out of the backbone's features, to segment.
    None: plain (two convolutions) for plain ViTs, unet for backbones with several scales; hf: models have their own."""
    adapt_decoder: bool = setting(False)
    """Tune the decoder's layers as the backbone's are, and train its norms and its last one as they are; for a
    pre-trained decoder.
    Off: the decoder is trained as a whole."""
    loss: Loss = setting("ce")
    """What is minimised, to segment: ce (cross-entropy of each pixel), dice (overlap of each class), or ce+dice, their
    sum, for small or rare classes."""
    ignore_index: int | None = setting(None, between(0, 65535))
    """Value in the masks that stands for no class, to segment: neither trained on nor evaluated. 255 is usual."""


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """What generation alone reads."""

    prompt: str | None = setting(None)
    """Caption of all images that have none of their own, to generate; {class} in it stands for the class's name."""
    caption_dropout: float = setting(0.0, from_below(0, 1))
    """Share of the captions left empty, to generate, 0 to 1; 0.1 is usual where guidance has to be learnt."""
    adapt_convs: bool = setting(False)
    """Tune the convolutions of a UNet as well, to generate. Off: attention and feed-forward layers."""
    snr_gamma: float | None = setting(None, above(0))
    """Least signal-to-noise ratio from which a timestep counts less (min-SNR), to generate; 5 is usual. None: off."""
    noise_offset: float = setting(0.0, at_least(0))
    """Strength of a noise that is the same all over a channel, to generate, for very dark or bright images; 0.05 to 0.1
    is usual."""
    prior_prompt: str | None = setting(None)
    """What the images are an instance of, to generate (DreamBooth): a photo of a dog. The model goes on making others
    of that kind, because it trains on some that it made before. None: no such images."""
    prior_data: str | None = setting(None)
    """Folder of images for prior_prompt; those that are missing are generated into it. None: in the cache."""
    prior_images: int = setting(100, at_least(1))
    """How many images there are for prior_prompt; an epoch takes each once if they are more than the data's."""
    prior_weight: float = setting(1.0, at_least(0))
    """Weight of the loss on them."""
    cache: bool = setting(True)
    """Keep latents and text embeddings on disk ($SNELLA_CACHE or ~/.cache/snella), to generate; the encoders then leave
    the device. Not with augment crop or color_jitter, which show other pixels each time."""
    half_weights: bool = setting(False)
    """Hold frozen weights in the half precision of --precision, to generate; what is tuned stays in fp32."""
    sample_prompts: tuple[str, ...] | None = setting(None)
    """Prompts or classes of the sample grids, to generate. None: the first 8 classes or 4 captions."""
    samples: int = setting(4, at_least(1))
    """Images for each of them; image i has seed i."""
    sample_every: int | None = setting(None, at_least(0))
    """Epochs between two sample grids. 0: before and after training only. None: five times in a run."""
    sample_steps: int = setting(30, at_least(1))
    """Denoising steps of a sample."""
    guidance: float | None = setting(None, at_least(0))
    """Guidance scale of samples, to generate. None: what is usual for the pipeline."""
