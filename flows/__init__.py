"""Prefect lives here alone: which stages, in what order, retried, scheduled, where; and the command line."""
