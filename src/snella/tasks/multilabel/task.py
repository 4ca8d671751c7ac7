"""Multi-label classification: its data, its models, and what is kept of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import RenderableType
from torch import nn

from snella.config.schema import TrainConfig
from snella.data.dataset import ImageData, Images
from snella.data.images import Progress
from snella.data.readers.labelled import Lister
from snella.data.readers.labelled_report import describe
from snella.errors import UserError
from snella.models.backbone import rescale_head
from snella.tasks.interface import Saved
from snella.tasks.multilabel.learner import Multilabel, positive_weights
from snella.tasks.multilabel.listing import lister
from snella.tasks.whole_image import WholeImageTask


class MultilabelTask(WholeImageTask):
    """Any number of labels for each image."""

    about: ClassVar[Mapping[str, Any]] = {"positive_weights": list[float], "thresholds": list[float]}
    metrics: ClassVar[dict[str, str]] = {"map": "mAP", "f1_micro": "F1 (micro)", "f1_macro": "F1 (macro)"}
    explains = True

    def recognises(self, data: str) -> bool:
        """Return False: tables and folders of labels may be of classes, so this task is asked for by name."""
        return False

    def lister(self, config: TrainConfig, saved: Saved | None) -> Lister:
        separator = config.multilabel.label_separator
        return lister(separator, None) if saved is None else lister(separator, saved["classes"])

    def read(self, config: TrainConfig, progress: Progress | None) -> ImageData[Images]:
        """Read the data as the other tasks do. Raises UserError where no image of val or test has a label, too."""
        data = super().read(config, progress)
        for split in ("val", "test"):
            if data.splits[split].targets and not any(map(any, data.splits[split].targets)):
                raise UserError(f"{data.root}: no image of {split} has a label; add some, so that there is one to find")
        return data

    def describe(self, data: ImageData[Images]) -> RenderableType:
        return describe(data)

    def subset(self, images: Images, count: int) -> Images:
        """Return the first `count` images of each label, and as many without one."""
        seen: Counter[int] = Counter()
        chosen = []
        for index, row in enumerate(images.targets):
            labels = [k for k, value in enumerate(row) if value] or [-1]
            if any(seen[k] < count for k in labels):
                chosen.append(index)
                seen.update(labels)
        return images.chosen(chosen)

    def facts(self, config: TrainConfig, data: ImageData[Images]) -> dict[str, Any]:
        """Return what rare labels weigh in the loss."""
        return super().facts(config, data) | {"positive_weights": self._weights(data)}

    def _weights(self, data: ImageData[Images]) -> list[float]:
        return positive_weights(torch.tensor(data.splits["train"].targets))

    def new_learner(self, config: TrainConfig, data: ImageData[Images]) -> Multilabel:
        return Multilabel(data.classes, positive_weights=self._weights(data))

    def saved_learner(self, saved: Saved) -> Multilabel:
        return Multilabel(saved["classes"], positive_weights=saved["positive_weights"], thresholds=saved["thresholds"])

    def save_merged(self, model: nn.Module, folder: Path, saved: Saved) -> str:
        """Write a model whose logits are those of the probabilities that `predict` gives."""
        learner = self.saved_learner(saved)
        rescale_head(model, torch.ones(len(learner.classes)), learner.shift)
        return f"{super().save_merged(model, folder, saved)}; sigmoids of its logits are the probabilities"


MULTILABEL = MultilabelTask()
