"""What each stage of self-training does. Nothing in here knows Prefect; MLflow lives in `tracking` alone."""
