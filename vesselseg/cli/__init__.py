"""The command line `vesselseg`: a file per command, whose function takes typed arguments and makes one call."""
