"""One module per label format: ``scan_...`` lists the labelled images of a source, ``read`` the shapes of one image."""
