"""Artifacts, runs and locks on disk."""
