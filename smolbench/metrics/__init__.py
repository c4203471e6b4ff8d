"""Quality of predictions; no Lightning here."""
