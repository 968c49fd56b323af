"""The trainer: data, networks, one step, the loop over steps, runs, experiments."""
