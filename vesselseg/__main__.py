"""`python -m vesselseg`: the command line without an installed console script."""

from vesselseg.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
