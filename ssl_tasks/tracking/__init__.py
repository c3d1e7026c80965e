"""MLflow lives here alone: runs, data sets, models and their lineage.

`tracker` is what a run talks to: it writes operations into a local spool and never waits. `shipper` is the process that
replays them to MLflow. `lineage` reads back what came from what. Importing this package imports nothing heavy.
"""
