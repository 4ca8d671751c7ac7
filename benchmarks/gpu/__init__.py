"""The parts of `benchmarks.gpu_check`: correctness, speed, accuracy, and what a machine without network is given."""
