"""The tables of pseudo-labels: predicted in shards, selected, balanced, corrected and inspected."""
