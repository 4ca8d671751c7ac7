"""What `snella data` prints: a file a kind of data."""
