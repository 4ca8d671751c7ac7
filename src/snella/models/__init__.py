"""Pre-trained backbones: built by name, known again by fingerprint, written as plain checkpoints."""
