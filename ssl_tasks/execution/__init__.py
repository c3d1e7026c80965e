"""Runs a stage: the request for it, its process, its GPUs and, with Ray, other machines."""
