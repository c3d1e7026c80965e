"""Where a model and its labels come from."""
