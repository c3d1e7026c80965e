"""Contains the stages of self-training and their parts. Nothing here uses Prefect; only `tracking` uses MLflow."""
