"""The folder of an experiment: configuration, checkpoints, lock, logs."""
