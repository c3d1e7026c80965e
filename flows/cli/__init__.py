"""Parses command lines, prints results and returns exit codes."""
