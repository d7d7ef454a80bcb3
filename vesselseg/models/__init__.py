"""Batch in, mask logits out."""
