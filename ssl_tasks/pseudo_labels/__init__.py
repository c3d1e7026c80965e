"""The table of invented labels: predicted in shards, selected, balanced, corrected, inspected."""
