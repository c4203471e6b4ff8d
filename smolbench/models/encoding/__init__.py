"""From texts to token ids: templates and the seams between their parts."""
