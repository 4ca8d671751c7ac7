"""How near generated images come to real ones: KID, FID and cosine similarities of a network's features.

    generated ─┐
               ├─ feature_model ─ features (n, d) ─ compare ─ Fidelity
    references ┘

"inception" gives the features that KID and FID were published with, `vit_base_patch32_clip_224.openai` those of CLIP-I
and `vit_small_patch16_224.dino` those of DINO (both DreamBooth's). Values of different features do not compare.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import timm.models
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from snella.data.transforms.images import eval_transform
from snella.errors import UserError, short_reason
from snella.models.backbone import (
    BackboneSpec,
    build_backbone,
    check_backbone_name,
    logits_of,
    preprocessing_of,
)
from snella.models.hub import WITHOUT_HUB

INCEPTION = "inception"
INSTEAD = "name a backbone, such as vit_small_focus"
SUBSETS, SUBSET_SIZE = 100, 1000  # of KID
CHUNK = 1024  # images whose cosines to all references are held at once

FeatureModel = Callable[[Tensor], Tensor]  # images uint8 (b, 3, h, w) -> features float32 (b, d)


@dataclass(frozen=True)
class Fidelity:
    """How near generated images come to real ones.

    Args:
        kid: squared MMD with the polynomial kernel, unbiased and so at times below 0; mean over subsets.
        kid_std: its standard deviation over subsets; 0 where each subset is the whole of both sides.
        fid: Fréchet distance; None with fewer images on a side than features, where covariances are singular.
        similarity: cosine of a generated image's features to a reference's, mean over all pairs (CLIP-I, DINO).
        nearest: cosine to the nearest reference, mean over generated images.
        features: name of the features.
        generated, references: numbers of images.
    """

    kid: float
    kid_std: float
    fid: float | None
    similarity: float
    nearest: float
    features: str
    generated: int
    references: int


def check_features(name: str) -> None:
    """Refuse features that cannot be had; nothing is built or downloaded.

    Raises:
        UserError: an unknown name, no weights of that name, a missing file or package.
    """
    if name != INCEPTION:
        with _remedy():
            check_backbone_name(_spec(name))
    elif find_spec("torch_fidelity") is None:
        raise UserError(f"features 'inception' need torch-fidelity: pip install 'snella[fidelity]', or {INSTEAD}")


def feature_model(name: str, device: torch.device | str) -> FeatureModel:
    """Return a function from images uint8 (b, 3, h, w) of any size to features (b, d), with its own preprocessing.

    A backbone sees the whole image, squashed to its input size; its features are what its head takes, or for the
    image towers of CLIP by their timm names the embedding that the head gives.

    Raises:
        UserError: as `check_features`; weights that cannot be downloaded.
    """
    check_features(name)
    device = torch.device(device)
    return _inception(device) if name == INCEPTION else _backbone(name, device)


@torch.no_grad()
def features_of(images: Iterable[Tensor], model: FeatureModel) -> Tensor:
    """Return features (n, d), float64 on the CPU, of batches of images uint8 (b, 3, h, w); (0, 0) of no images."""
    batches = [model(batch).double().cpu() for batch in images if len(batch)]
    return torch.cat(batches) if batches else torch.empty(0, 0, dtype=torch.float64)


def fidelity(
    generated: Iterable[Tensor],
    references: Iterable[Tensor],
    features: str,
    *,
    device: torch.device | str,
    seed: int = 0,
) -> Fidelity:
    """Compare generated images with real ones; both come in batches uint8 (b, 3, h, w).

    Args:
        features: "inception" or a backbone's name (`snella.models.backbone`).
        seed: of KID's subsets.

    Raises:
        UserError: as `feature_model`; fewer than 2 images on a side.
    """
    model = feature_model(features, device)
    return compare(features_of(generated, model), features_of(references, model), features, seed=seed)


@torch.no_grad()
def compare(generated: Tensor, references: Tensor, features: str, *, seed: int = 0) -> Fidelity:
    """Compare features that are there already: (n, d) and (m, d), as `features_of` gives them.

    Raises:
        UserError: n or m is below 2.
    """
    for side, features_there in (("generated", generated), ("reference", references)):
        if len(features_there) < 2:
            raise UserError(f"fidelity needs 2 or more {side} images; there are {len(features_there)}")
    kid, kid_std = _kid(generated, references, seed)
    ours, theirs = F.normalize(generated), F.normalize(references)
    nearest = torch.cat([(part @ theirs.T).amax(1) for part in ours.split(CHUNK)])
    return Fidelity(
        kid=kid,
        kid_std=kid_std,
        fid=_fid(generated, references),
        similarity=float(ours.mean(0) @ theirs.mean(0)),
        nearest=float(nearest.mean()),
        features=features,
        generated=len(generated),
        references=len(references),
    )


class _AsGiven(nn.Identity):
    """A stand-in for the network in torchmetrics, which is then given features instead of images."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def _kid(generated: Tensor, references: Tensor, seed: int) -> tuple[float, float]:
    size = min(len(generated), len(references), SUBSET_SIZE)
    whole = size == len(generated) == len(references)  # every subset is the same
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save all")
        metric = KernelInceptionDistance(
            _AsGiven(generated.shape[1]), subsets=1 if whole else SUBSETS, subset_size=size
        )
    metric.update(generated, real=False)
    metric.update(references, real=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, std = metric.compute()
    return float(mean), float(std)


def _fid(generated: Tensor, references: Tensor) -> float | None:
    dimensions = generated.shape[1]
    if min(len(generated), len(references)) < dimensions:
        return None
    metric = FrechetInceptionDistance(_AsGiven(dimensions))
    metric.update(generated, real=False)
    metric.update(references, real=True)
    return float(metric.compute())


def _spec(name: str) -> BackboneSpec:
    clip = "clip" in name and "_ft_in" not in name and timm.models.get_pretrained_cfg(name)
    embedding: int = clip.num_classes if clip else 0  # timm names the projection as a head; others go without a head
    return BackboneSpec(name, pretrained=True, checkpoint=None, image_size=None, num_classes=embedding)


def _backbone(name: str, device: torch.device) -> FeatureModel:
    spec = _spec(name)
    with _remedy(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model = build_backbone(spec).eval().to(device)
    prepare = eval_transform(replace(preprocessing_of(spec, model), resize="squash"))

    def features(images: Tensor) -> Tensor:
        return logits_of(model(prepare({"image": images.to(device)})["image"]))

    return features


def _inception(device: torch.device) -> FeatureModel:
    from torch_fidelity.feature_extractor_inceptionv3 import (  # pyright: ignore[reportMissingImports]
        URL_INCEPTION_V3,
        FeatureExtractorInceptionV3,
    )

    file = _downloaded(URL_INCEPTION_V3)
    # Given a file, it is read by torch.load, which takes tensors only; its own download would be unpickled.
    network: Any = FeatureExtractorInceptionV3(INCEPTION, ["2048"], feature_extractor_weights_path=file)
    network.to(device)
    return lambda images: network(images.to(device))[0]


def _downloaded(url: str) -> str:
    """Download a file to torch's cache, where torch-fidelity looks too, if need be; return its path.

    Its name ends with the start of its SHA-256.
    """
    file = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url))
    if os.path.isfile(file):
        return file
    digest = os.path.splitext(file)[0].rpartition("-")[2]
    try:
        os.makedirs(os.path.dirname(file), exist_ok=True)
        torch.hub.download_url_to_file(url, file, hash_prefix=digest, progress=False)
    except (OSError, RuntimeError) as error:  # urllib's errors are of the first kind, another digest of the second
        raise UserError(
            f"the weights of features 'inception' cannot be downloaded ({short_reason(error)}); "
            f"put {url} at {file}, or {INSTEAD}"
        ) from error
    return file


@contextmanager
def _remedy() -> Iterator[None]:
    """Change the remedy of an error: what helps a backbone to train does not help features, which have a name alone."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(WITHOUT_HUB, "choose other features, such as vit_small_focus")) from error


def fidelity_line(result: Fidelity) -> str:
    """Say in a line how near generated images come to real ones."""
    fid = f"FID {result.fid:.2f}" if result.fid is not None else "no FID (fewer images than features)"
    return (
        f"{result.generated} generated against {result.references} real images, features of {result.features}: "
        f"KID {result.kid:.4f} ± {result.kid_std:.4f}, {fid}, similarity {result.similarity:.3f}, to the nearest "
        f"{result.nearest:.3f}"
    )
