"""Faults that made codebooks collapse, each with its cure."""
