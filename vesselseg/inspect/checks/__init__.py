"""Checks of a dataset folder: leaks between splits, duplicates, implausible labels and masks, drift."""
