"""Baselines for comparison with models: a Frangi filter, a U-Net, and masks of any program."""
