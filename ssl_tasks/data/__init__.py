"""Turns an image source into the batches of a training step."""
