"""Models that write summaries, and their rows."""
