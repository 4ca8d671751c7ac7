"""The layouts in which data sets lie on disk or on a hub: each has a file, and a row of `registry`."""
