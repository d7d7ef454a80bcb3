"""How much memory and time a training takes, from shapes alone."""
