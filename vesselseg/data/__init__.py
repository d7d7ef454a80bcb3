"""LabelMe JSON in, Batch out."""
