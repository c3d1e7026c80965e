"""Stores artifacts, runs and locks on disk, and all files that must survive a killed process."""
