"""Checks of a dataset folder: leaks between splits, repeated pictures, labels and masks that look wrong, drift."""
