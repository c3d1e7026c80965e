"""Predicts, selects, balances, corrects and shows pseudo-labels, which are tables in Parquet files."""
