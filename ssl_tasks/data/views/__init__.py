"""Augments images: weak and strong views."""
