"""Batches as a pure function of seed and step."""
