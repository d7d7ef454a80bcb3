"""Files into pictures, labels into shapes, shapes into masks: shared by all rooms that read or draw them."""
