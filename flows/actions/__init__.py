"""The verbs as functions that return data."""
