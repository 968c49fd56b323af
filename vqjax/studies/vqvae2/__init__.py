"""Two levels of codes against one at equal bits."""
