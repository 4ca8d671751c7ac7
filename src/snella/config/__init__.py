"""What a training run is: its settings, where they come from and what they may be."""

from snella.config.schema import TrainConfig

__all__ = ["TrainConfig"]
