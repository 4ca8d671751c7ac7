"""What becomes of an image before a model sees it."""
