"""Data sets by name: those that installed packages carry, and those that hubs and other packages open (PREFIX/NAME)."""
