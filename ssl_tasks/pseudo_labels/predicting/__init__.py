"""Predictions of the teacher for all unlabelled images."""
