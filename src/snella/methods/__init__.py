"""The methods of tuning: how each wraps a model, and how what it trained is saved, loaded and merged."""

from snella.methods.table import METHODS, MethodSettings, after_step, load_adapter, merged, save_adapter, wrap

__all__ = ["METHODS", "MethodSettings", "after_step", "load_adapter", "merged", "save_adapter", "wrap"]
