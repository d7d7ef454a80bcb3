"""One file per weight layout: read it, write it, strictly."""
