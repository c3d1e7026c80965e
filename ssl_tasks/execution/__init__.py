"""How a stage runs: its request, its process, its GPUs, its machines."""
