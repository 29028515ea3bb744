"""Exact deletion: the training by slices is recorded, replayed without an image, verified."""
