"""The stages of self-training, and all that they need. Nothing here uses Prefect; only `tracking` uses MLflow."""
