"""MLflow lives here alone: runs, data sets, models and their lineage."""
