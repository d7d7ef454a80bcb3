"""Preparation: from a folder or archive of labelled images to a dataset folder and its report."""
