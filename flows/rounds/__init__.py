"""Runs the rounds of self-training: defines the stages and their order, and runs or reuses each of them."""
