"""One process's view of training: the loop, the optimiser, checkpoints and the log. No Ray."""
