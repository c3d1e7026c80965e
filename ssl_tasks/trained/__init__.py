"""Trained models: their files, predictions, exports and cards."""
