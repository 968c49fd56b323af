"""Quantizers on one task."""
