"""Models that make images: pipelines, their noise and their sampling."""
