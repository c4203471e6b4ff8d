"""Run folders and what is made from them; nothing here imports torch."""
