"""From a dataset folder to the Batch that models receive."""
