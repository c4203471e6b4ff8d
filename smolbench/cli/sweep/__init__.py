"""``smolbench sweep``: one recipe under many settings, each trial a run of its own."""
