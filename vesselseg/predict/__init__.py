"""Predict files: images, videos and DICOM files in, result files out."""
