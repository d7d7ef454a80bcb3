"""Images and phrases in, probabilities out: the only inference path."""
