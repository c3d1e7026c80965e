"""Everything from an image source to the batches of a training step."""
