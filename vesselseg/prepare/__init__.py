"""A folder or archive of labelled pictures in, a dataset folder and its report out."""
