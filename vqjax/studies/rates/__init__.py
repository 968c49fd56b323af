"""Accuracy against bits."""
