"""Files in, result files out."""
