"""The reports that `snella data` prints: a file a kind of data."""
