"""Data sets that packages ship."""
