"""Writing trained models as folders that others load without smolbench; no Lightning here."""
