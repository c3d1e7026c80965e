"""Stores the features of a frozen network, and learns from them: linear models, neighbour graphs, a label check."""
