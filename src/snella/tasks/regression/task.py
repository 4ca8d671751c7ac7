"""Regression: its data, its models, and what is kept of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Group, RenderableType
from torch import nn

from snella.config.schema import TrainConfig
from snella.console import shown
from snella.data.dataset import ImageData, Images
from snella.data.readers.labelled import Lister
from snella.data.readers.labelled_report import describe_rest
from snella.models.backbone import rescale_head
from snella.report.tables import new_table
from snella.tasks.interface import Saved
from snella.tasks.regression.learner import Regress, Scale, scales_of
from snella.tasks.regression.listing import lister
from snella.tasks.whole_image import WholeImageTask


class RegressionTask(WholeImageTask):
    """One or several numbers for each image."""

    about: ClassVar[Mapping[str, Any]] = {"scales": list[Scale]}
    metrics: ClassVar[dict[str, str]] = {
        "standardised_mae": "standardised MAE",
        "mae": "MAE",
        "rmse": "RMSE",
        "r2": "R2",
    }

    def recognises(self, data: str) -> bool:
        """Return False: numbers may be names of classes, so this task is asked for by name."""
        return False

    def lister(self, config: TrainConfig, saved: Saved | None) -> Lister:
        return lister(config.regress.target_column, None if saved is None else saved["classes"])

    def describe(self, data: ImageData[Images]) -> RenderableType:
        """Show the range of each quantity in each split, and what is shown of images of any kind."""
        table = new_table(None, left=("target", "split"), right=("images", "least", "mean", "largest", "deviation"))
        for k, name in enumerate(data.classes):
            for split, images in data.splits.items():
                if values := [row[k] for row in images.targets]:
                    found = torch.tensor(values, dtype=torch.float64)
                    numbers = (found.min(), found.mean(), found.max(), found.std(correction=0))
                    table.add_row(shown(name), split, f"{len(values):,}", *(f"{float(x):.4g}" for x in numbers))
        return Group(shown(f"{data.root}: {data.layout}"), table, *describe_rest(data))

    def subset(self, images: Images, count: int) -> Images:
        """Return `count` images, spread evenly."""
        return images.chosen(range(0, len(images), max(1, len(images) // count))[:count])

    def facts(self, config: TrainConfig, data: ImageData[Images]) -> dict[str, Any]:
        """Return by what the quantities are standardised."""
        return super().facts(config, data) | {"scales": [asdict(scale) for scale in self._scales(data)]}

    def _scales(self, data: ImageData[Images]) -> list[Scale]:
        return scales_of(data.classes, torch.tensor(data.splits["train"].targets))

    def new_learner(self, config: TrainConfig, data: ImageData[Images]) -> Regress:
        return Regress(data.classes, self._scales(data))

    def saved_learner(self, saved: Saved) -> Regress:
        scales = [Scale(known["mean"], known["std"], tuple(known["levels"])) for known in saved["scales"]]
        return Regress(saved["classes"], scales)

    def save_merged(self, model: nn.Module, folder: Path, saved: Saved) -> str:
        """Write a model that gives the quantities in units of the data."""
        learner = self.saved_learner(saved)
        rescale_head(model, learner.std, learner.mean)
        return f"{super().save_merged(model, folder, saved)}; its outputs are in units of the data"


REGRESSION = RegressionTask()
