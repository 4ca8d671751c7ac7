"""Image classification: its data, its models, and what is kept of them."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from rich.console import RenderableType

from snella.config.schema import TrainConfig
from snella.data.dataset import ImageData, Images, class_weights
from snella.data.readers.labelled_report import describe
from snella.tasks.classification.learner import Classify
from snella.tasks.interface import Saved
from snella.tasks.whole_image import WholeImageTask

FEW_CLASSES = 5


class ClassificationTask(WholeImageTask):
    """One class for each image."""

    metrics: ClassVar[dict[str, str]] = {"top1": "top-1", "top5": "top-5", "balanced_accuracy": "balanced accuracy"}
    ensembles = True
    explains = True

    def shown_metrics(self, classes: int) -> dict[str, str]:
        """Return all but top-5 where there are five classes or fewer, among the first five of which every class is."""
        return {metric: name for metric, name in self.metrics.items() if metric != "top5" or classes > FEW_CLASSES}

    def recognises(self, data: str) -> bool:
        """Return True: any data may be labelled images, so this task is the last one to ask."""
        return True

    def describe(self, data: ImageData[Images]) -> RenderableType:
        return describe(data)

    def subset(self, images: Images, count: int) -> Images:
        """Return the first `count` images of each class."""
        seen: Counter[int] = Counter()
        chosen = []
        for index, label in enumerate(images.labels):
            seen[label] += 1
            if seen[label] <= count:
                chosen.append(index)
        return images.chosen(chosen)

    def new_learner(self, config: TrainConfig, data: ImageData[Images]) -> Classify:
        return Classify(
            data.classes,
            class_weights=class_weights(data.splits["train"], data.classes) if config.data.class_weights else None,
            label_smoothing=config.data.label_smoothing,
            mixup=config.classify.mixup,
            cutmix=config.classify.cutmix,
        )

    def saved_learner(self, saved: Saved) -> Classify:
        return Classify(saved["classes"])


CLASSIFICATION = ClassificationTask()
