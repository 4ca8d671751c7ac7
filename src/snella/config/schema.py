"""What a training run is: one typed definition for flags, recipes (YAML), types, defaults and help.

    recipe (YAML) ─ defaults ─┐
                              ├─ TrainConfig ─ validate ─ train
    flags ──────── override ──┘

This module imports nothing heavy: `snella train --help` reads it, and a wrong value is refused before torch loads.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

Method = Literal["snella", "snell", "lora", "dora", "adalora", "shira", "oft", "bitfit", "linear", "full"]
Kernel = Literal["mixk", "pwl"]
Gate = Literal["published", "soft", "hard", "none"]
Rematerialize = Literal["none", "inputs", "mlp"]
Task = Literal["classify", "segment", "generate"]
Loss = Literal["ce", "dice", "ce+dice"]
Optimizer = Literal["adamw", "adamw8bit"]
Decoder = Literal["plain", "unet", "fpn", "upernet", "segformer", "dpt"]
Split = Literal["train", "val", "test", "all"]
Tested = Literal["best", "both", "none"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Fine-tune a pre-trained vision backbone on images."""

    task: Task = "classify"
    """What is learnt: classify gives a class to each image, segment to each pixel, generate makes images."""
    data: str | None = None
    """Where the images are. Needed; has no default.
    A folder of class folders, or of train, val and test with class folders; a CSV or JSONL manifest;
    a VTAB-1k or FGVC folder; hfds/NAME, torch/NAME or wds/NAME;
    elpv, elpv-levels, elpv-mono, elpv-poly, elpv-type, textiles or digits (in packages).
    To segment: a folder with images and masks, an ADE20K or Pascal VOC folder, or brain (in a package).
    To generate: a folder with metadata.jsonl or with a .txt beside each image, class folders, images alone;
    photos or photos-new (in packages)."""
    backbone: str = "vit_base_patch16_224.augreg_in21k"
    """A timm name (also hf-hub:NAME), hf:NAME_OR_FOLDER (transformers), vit_small_focus or
    efficientnet_lite0_imagenet (in packages). The default is the published one.
    To generate: a diffusers pipeline (OWNER/NAME or a folder), or small_unet."""
    pretrained: bool = True
    """Load the backbone's pre-trained weights; without them only a checkpoint or a test makes sense."""
    checkpoint: str | None = None
    """File with the backbone's weights (.safetensors, .pth, .npz), instead of the ones its name stands for."""
    image_size: int | None = None
    """Side of the square the model sees, in pixels. None: the size the backbone was pre-trained at."""
    resize: Literal["squash", "crop", "none"] | None = None
    """How an image becomes square: squash resizes both sides, as VTAB-1k does; nothing is cut off.
    crop resizes the short side and cuts out the centre, as FGVC does. To segment, crop and none (pixels as they are)
    train on random squares and find the classes of a whole image by sliding a square over it. To generate, crop keeps
    all that fits a square. None: squash; to generate, crop."""
    normalisation: Literal["backbone", "imagenet"] = "backbone"
    """Whose mean and standard deviation of colours the images are given in: the backbone's, as it was pre-trained,
    or ImageNet's, as the published code has it with every backbone. To classify and to segment."""

    decoder: Decoder | None = None
    """What makes a map of classes out of the backbone's features, to segment.
    None: plain (two convolutions) for plain ViTs, unet for backbones with several scales; hf: models have their own."""
    adapt_decoder: bool = False
    """Tune the decoder's layers as the backbone's are, and train its norms and its last one as they are; for a
    pre-trained decoder.
    Off: the decoder is trained as a whole."""

    method: Method = "snella"
    """How the backbone is tuned. snella and snell are this package's; bitfit trains biases, linear the head.
    shira (linear layers alone) and oft (no ConvNeXt, no ResNet) do not suit every backbone."""
    r: int = 32
    """Rank of the update's two factors. 32 as published; lora, dora, adalora and shira use it too."""
    heads: int = 2
    """Parts that r is split into, for snella and snell; divides r. 2 as published."""
    kernel: Kernel = "mixk"
    """How the factors make an update, for snella: mixk (SNELLA) or pwl (SNELL; always used by snell)."""
    gate: Gate = "published"
    """What becomes of the entries that win the budget, for snella and snell.
    published is what the published code does; soft is the SNELL paper's equation 5; none keeps all."""
    scale: float | None = None
    """Constant before the distances, the same for all layers, for snella and snell. 0.1 as published: the learning rate
    has to suit the layers' sizes then, and the update learns far slower than the head. None: see relative_scale."""
    relative_scale: float = 8.0
    """The constant of a layer over the root of its frozen weight's rms, so that updates are in proportion to weights,
    for snella and snell. With gates hard and none the constant is a tenth of this over the rms.
    Smaller is safer in trainings of less than a hundred steps."""
    start_scale: float = 0.1
    """What the constant is at the start, for snella and snell: the factors begin smaller instead. 0.1 as published."""
    init_alpha: float = 0.0
    """Weight of mixk's softmax kernel at the start, for snella; it is learnt. 1 as published."""
    init_sparsity: float = 0.0
    """Share of the update that is zero at the start, 0 to 1. 0 as published for FGVC."""
    target_sparsity: float = 0.7
    """Share of the update that is zero at the end, 0 to 1. 0.7 is the middle of the published values."""
    init_warmup: int = 0
    """Steps before budgets first change. 0 as published."""
    final_warmup: int = 0
    """Steps at the end during which the budget stays at its target. 0 as published; for adalora that is a tenth."""
    allocate_every: int | None = None
    """Steps between two divisions of the budget. None: once an epoch, as published."""
    target_modules: tuple[str, ...] | None = None
    """Names of the layers to tune, as in PEFT: ends of names, one regular expression, or all-linear.
    None: what suits the backbone's family."""
    update_dropout: float = 0.0
    """Dropout on the input of the update, 0 to 1; needs a second product while training, so off by default."""
    update_drop_path: float = 0.0
    """Share of samples that do without the update while training, 0 to 1. The published recipes set 0.1."""
    rematerialize: Rematerialize = "inputs"
    """What is computed a second time to save memory, for snella and snell; gradients stay the same to the bit.
    inputs: outputs of normalisations and activations. mlp: also an MLP's first product, for about a tenth more time."""
    drop_path: float = 0.0
    """Drop-path of the backbone itself at its last block, 0 to 1; rises from 0 over depth. Off by default. To classify
    and to segment."""

    epochs: int = 100
    """Passes over the training images, or over the images for prior_prompt where those are more. 100 as published."""
    batch_size: int = 32
    """Images per batch; a step takes --accumulate of them. The published recipes use 8 to 32."""
    optimizer: Optimizer = "adamw"
    """What makes a step of the gradients: adamw as published.
    adamw8bit keeps AdamW's two moments in 8 bits (needs the package bitsandbytes and a CUDA device)."""
    lr: float = 1e-3
    """Peak learning rate. 1e-3 as published."""
    min_lr: float = 1e-5
    """Learning rate at the end of the cosine. 1e-5 as published."""
    warmup_lr: float = 1e-6
    """Learning rate at the first step. 1e-6 as published."""
    warmup: float = 0.1
    """Share of all steps over which the learning rate rises, 0 to 1. 0.1 is the published 10 epochs of 100."""
    weight_decay: float = 0.05
    """Decoupled weight decay of AdamW; one-dimensional parameters have none. 0.05 is the most frequent published."""
    clip_grad: float | None = None
    """Largest norm of the gradient. None: not clipped, as published."""
    accumulate: int = 1
    """Batches per optimiser step: a larger batch in the same memory."""
    loss: Loss = "ce"
    """What is minimised, to segment: ce (cross-entropy of each pixel), dice (overlap of each class), or ce+dice, their
    sum, for small or rare classes."""
    ignore_index: int | None = None
    """Value in the masks that stands for no class, to segment: neither trained on nor evaluated. 255 is usual."""
    prompt: str | None = None
    """Caption of all images that have none of their own, to generate; {class} in it stands for the class's name."""
    caption_dropout: float = 0.0
    """Share of the captions left empty, to generate, 0 to 1; 0.1 is usual where guidance has to be learnt."""
    adapt_convs: bool = False
    """Tune the convolutions of a UNet as well, to generate. Off: attention and feed-forward layers."""
    snr_gamma: float | None = None
    """Least signal-to-noise ratio from which a timestep counts less (min-SNR), to generate; 5 is usual. None: off."""
    noise_offset: float = 0.0
    """Strength of a noise that is the same all over a channel, to generate, for very dark or bright images; 0.05 to 0.1
    is usual."""
    prior_prompt: str | None = None
    """What the images are an instance of, to generate (DreamBooth): a photo of a dog. The model goes on making others
    of that kind, because it trains on some that it made before. None: no such images."""
    prior_data: str | None = None
    """Folder of images for prior_prompt; those that are missing are generated into it. None: in the cache."""
    prior_images: int = 100
    """How many images there are for prior_prompt; an epoch takes each once if they are more than the data's."""
    prior_weight: float = 1.0
    """Weight of the loss on them."""
    cache: bool = True
    """Keep latents and text embeddings on disk ($SNELLA_CACHE or ~/.cache/snella), to generate; the encoders then leave
    the device. Not with augment crop or color_jitter, which show other pixels each time."""
    half_weights: bool = False
    """Hold frozen weights in the half precision of --precision, to generate; what is tuned stays in fp32."""
    gradient_checkpointing: bool = False
    """Compute a network's activations a second time, to generate: far less memory, about a third more time."""
    sample_prompts: tuple[str, ...] | None = None
    """Prompts or classes of the sample grids, to generate. None: the first 8 classes or 4 captions."""
    samples: int = 4
    """Images for each of them; image i has seed i."""
    sample_every: int | None = None
    """Epochs between two sample grids. 0: before and after training only. None: five times in a run."""
    sample_steps: int = 30
    """Denoising steps of a sample."""
    guidance: float | None = None
    """Guidance scale of samples, to generate. None: what is usual for the pipeline."""
    label_smoothing: float = 0.0
    """Share of the target spread over the other classes, to classify and to segment, 0 to 1. Off as published."""
    class_weights: bool = False
    """Weigh classes by the inverse of their frequency, for unbalanced data, to classify and to segment."""
    mixup: float = 0.0
    """Alpha of mixup's beta distribution, to classify; 0 is off, as published."""
    cutmix: float = 0.0
    """Alpha of CutMix's beta distribution, to classify; 0 is off, as published."""
    augment: Literal["none", "flip", "crop"] = "flip"
    """How training images vary: none, flip (left-right) or crop (random-resized crop and flip, as for FGVC).
    flip changes no scale, so it suits most images; use none where left and right matter. To generate, crop keeps the
    scale: a random square."""
    auto_augment: str | None = None
    """A timm policy such as rand-m9-mstd0.5-inc1, original or augmix-m5-w4, to classify. Off as published."""
    color_jitter: float = 0.0
    """Strength of brightness, contrast and saturation changes. Off as published."""
    random_erasing: float = 0.0
    """Share of the training images that get a rectangle erased, to classify, 0 to 1. Off as published."""
    ema: float | None = None
    """Decay of an average of the tuned weights, which is then what is evaluated and saved.
    0.9999 as published for FGVC. None: no average, since a short run would hardly move it."""
    early_stopping: int = 0
    """Epochs without a better validation score after which training ends. 0: never, as published."""
    val_fraction: float = 0.15
    """Share of each class set aside for choosing the epoch, where the data has no such split. 0 to 1."""
    test_fraction: float = 0.15
    """Share of each class set aside for the final test, where the data has no split of its own. 0 to 1."""

    test: Tested = "best"
    """Which epochs are tested: best (the best on val), both (that and the last one), or none.
    --resume with another value tests what was not tested, without training again."""

    seed: int = 0
    """Seed of everything that is drawn: new weights, splits, order, augmentation."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:N or mps."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward pass. fp32 is exact everywhere; bf16 is faster on recent GPUs."""
    workers: int | None = None
    """Processes that decode images. None: one per core up to 8 beside a GPU, none beside a CPU that trains."""
    checkpoint_every: int = 0
    """Steps between two checkpoints. 0: one at the end of each epoch."""
    tensorboard: bool = False
    """Write TensorBoard events as well (needs the package tensorboard)."""
    smoke: bool = False
    """Shrink any recipe to a minute: 8 images of each class (to segment and to generate, 8) in each split, 2 epochs, at
    most 112 pixels (to generate, the network's size). Shows that it runs, no more."""

    out: str | None = None
    """Folder for the results. None: runs/DATA-METHOD-sSEED."""
    resume: bool = False
    """Go on from the newest checkpoint of the run folder; from the beginning if it has none."""
    overwrite: bool = False
    """Replace an existing run folder, once data and model are ready."""
    estimate: bool = False
    """Print the memory that a training step needs, and train nothing; no run folder is written."""


DEFAULTS = TrainConfig()
# How a run is started, not what it is: kept out of recipes and of config.yaml, which is itself a recipe.
START = ("out", "resume", "overwrite", "estimate")
# Do not change what a run computes, so a resumed run may have others.
FREE_TO_CHANGE = (
    *START,
    "device",
    "workers",
    "checkpoint_every",
    "test",
    "tensorboard",
    "rematerialize",
    "gradient_checkpointing",
)
# Read by some tasks alone: given with another, they are refused rather than left unread.
TASK_FIELDS: dict[tuple[Task, ...], tuple[str, ...]] = {
    ("classify",): ("auto_augment", "random_erasing", "mixup", "cutmix"),
    ("classify", "segment"): ("label_smoothing", "class_weights", "drop_path", "normalisation"),
    ("segment",): ("decoder", "adapt_decoder", "loss", "ignore_index"),
    ("generate",): (
        *("prompt", "caption_dropout", "adapt_convs", "snr_gamma", "noise_offset", "cache", "half_weights"),
        *("gradient_checkpointing", "prior_prompt", "prior_data", "prior_images", "prior_weight"),
        *("sample_prompts", "samples", "sample_every", "sample_steps", "guidance"),
    ),
}
# Read by some methods alone: runs of the others are the same whatever these say.
METHOD_FIELDS: dict[tuple[Method, ...], tuple[str, ...]] = {
    ("snella",): ("kernel", "init_alpha", "init_sparsity"),
    ("snella", "snell"): (
        *("heads", "gate", "scale", "relative_scale", "start_scale", "target_sparsity", "update_drop_path"),
    ),
    ("snella", "adalora"): ("init_warmup", "final_warmup", "allocate_every"),
    ("snella", "snell", "lora", "dora", "adalora"): ("update_dropout",),
}
HINTS: dict[str, Any] = get_type_hints(TrainConfig)
KEYS = tuple(f.name for f in fields(TrainConfig) if f.name not in START)


def nearest(name: str, names: Iterable[str]) -> str:
    """'; did you mean NAME?' for the nearest of the names, or '' if none is near."""
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def flag(name: str) -> str:
    """The flag of a field: `batch_size` -> `--batch-size`."""
    return "--" + name.replace("_", "-")


SMOKE_PER_CLASS = 8  # images of each class and split
SMOKE_IMAGE = 112  # pixels; whole patches of both 14 and 16


def shrunk(config: TrainConfig) -> TrainConfig:
    """What `--smoke` makes of a config; the images per class are limited where the data is read."""
    if config.task == "generate":  # at the size that the network makes
        few = {"samples": 2, "sample_steps": 4} | ({"prior_images": 4} if config.prior_prompt is not None else {})
        config = replace(config, **{name: min(getattr(config, name), most) for name, most in few.items()})
    else:
        config = replace(config, image_size=min(config.image_size or SMOKE_IMAGE, SMOKE_IMAGE))
    return replace(
        config,
        epochs=min(config.epochs, 2),
        batch_size=min(config.batch_size, 8),
        init_warmup=0,
        final_warmup=0,
        allocate_every=None,
        checkpoint_every=0,
    )


def run_folder(config: TrainConfig) -> Path:
    """The run folder: `out`, or runs/DATA-METHOD-sSEED."""
    if config.out:
        return Path(config.out)
    return Path("runs") / f"{source_name(config.data or '')}-{config.method}-s{config.seed}"


def source_name(source: str) -> str:
    """What data or a recipe is called in the name of a folder of results."""
    name = Path(source).stem if Path(source).is_file() else Path(source).resolve().name
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "data"
