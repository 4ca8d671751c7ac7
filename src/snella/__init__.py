"""Sparse fine-tuning of pre-trained vision models: kernelised updates that compete for a budget."""

from snella.version import __version__

__all__ = ["__version__"]
