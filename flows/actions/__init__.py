"""What each verb does, as functions that return data."""
