"""One file per label format: which images a source labels (``find_...``), and the shapes of one image (``read``)."""
