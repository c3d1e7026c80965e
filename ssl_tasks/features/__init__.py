"""Features of a frozen network: the stage that stores them, and what learns from them without training a network."""
