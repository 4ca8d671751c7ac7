"""From a path or a name to train, val and test, and what `snella data` prints of them: two files a kind of data."""
