"""Synthetic angiograms and cine runs with known vessels."""
