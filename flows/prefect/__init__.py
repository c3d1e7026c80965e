"""All that imports Prefect."""
