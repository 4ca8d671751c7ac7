"""The methods of tuning: how each wraps a model, and how what it trained is saved, loaded and merged."""

from snella.config.method import METHODS, Method, MethodConfig
from snella.methods.adapters import after_step, load_adapter, merged, save_adapter, wrap

__all__ = ["METHODS", "Method", "MethodConfig", "after_step", "load_adapter", "merged", "save_adapter", "wrap"]
