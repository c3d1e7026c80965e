"""Looking at a folder before a run."""
