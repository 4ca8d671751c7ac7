"""From a path or a name to train, val and test: a file a kind of data."""
