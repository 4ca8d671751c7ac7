"""Masks: how files say the classes of pixels."""
