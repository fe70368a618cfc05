"""Fold a segmentation decoder, and take it back."""
