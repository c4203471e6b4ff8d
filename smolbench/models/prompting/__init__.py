"""Prompts: shots, label words, calibration."""
