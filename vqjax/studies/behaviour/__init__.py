"""Behaviours behind the codes of recordings."""
