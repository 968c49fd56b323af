"""Configurations: the fields, the check that they fit together, the space that trials draw from."""
