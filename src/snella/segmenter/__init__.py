"""Models that give each pixel a class: a backbone and a decoder."""
