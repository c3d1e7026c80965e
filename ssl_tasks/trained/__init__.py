"""Trained models: their files, cards, predictions and exports."""
