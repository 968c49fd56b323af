"""Each remedy alone, added to one weak baseline."""
