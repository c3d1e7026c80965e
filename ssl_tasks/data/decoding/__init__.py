"""From image files to arrays of one size."""
