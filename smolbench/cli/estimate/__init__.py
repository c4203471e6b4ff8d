"""``smolbench fit --estimate``: a few steps of a run, and what the whole of it would cost."""
