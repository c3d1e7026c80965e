"""Which pseudo-labels are accepted."""
