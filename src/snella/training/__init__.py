"""Training: one loop, checkpoints, the optimiser's set-up and memory accounting, for any task and tuning method."""
