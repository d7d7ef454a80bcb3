"""A dataset folder in, Batch out."""
