"""A run from its settings to its results, and what a finished one can do."""
