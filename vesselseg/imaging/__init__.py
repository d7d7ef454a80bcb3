"""Image decoding, label parsing, rasterising and drawing, shared by preparation, prediction and the service."""
