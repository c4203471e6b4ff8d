"""Mutation tests: see README.md."""
