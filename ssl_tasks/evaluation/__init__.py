"""Evaluates models, and decides whether a student is better than its teacher."""
