"""One method with one seed, from its start or its newest checkpoint to its last figures."""
