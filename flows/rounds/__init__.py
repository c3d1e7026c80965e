"""The rounds: which stages, in which order, and how each is answered."""
