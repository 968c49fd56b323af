"""One training step: network, start, gradient, optimizer, evaluation, and where arrays live."""
