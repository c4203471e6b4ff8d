"""Outputs of frozen networks, computed once and kept."""
