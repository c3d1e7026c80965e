"""Weak and strong augmentation."""
