"""Speed and memory of ways to fine-tune the same model on the same layers: `python -m benchmarks.run --help`."""
