"""Images made from noise."""
