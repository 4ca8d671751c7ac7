"""`snella app`: a local page to try runs on images."""
