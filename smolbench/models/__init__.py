"""What learns; no Lightning here."""
