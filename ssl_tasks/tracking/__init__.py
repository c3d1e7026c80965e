"""Contains all code that uses MLflow: runs, data sets, models and their lineage.

A run calls `tracker`, which writes operations into a local spool and never waits. The process `shipper` replays them to
MLflow. `lineage` and `trace` read the lineage of models and images. Importing this package imports nothing heavy.
"""
