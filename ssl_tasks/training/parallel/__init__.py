"""Training with several processes and hosts."""
