"""Data sets of hubs and of other packages, by `PREFIX/NAME`: each has a file, and a row of `layouts.registry`."""
