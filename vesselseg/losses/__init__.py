"""Pure loss functions and their weighting."""
