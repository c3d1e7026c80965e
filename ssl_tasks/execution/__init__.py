"""Running a stage: its request, its process, its GPUs, its machines."""
