"""Trains one network with one method; a training that was killed resumes at its last checkpoint."""
