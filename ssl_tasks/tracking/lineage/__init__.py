"""The origin of models and labels."""
