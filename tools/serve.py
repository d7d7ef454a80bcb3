"""`vesselseg serve` from a checkout: `python tools/serve.py --help` lists its options."""

import sys

from vesselseg.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["serve", *sys.argv[1:]]))
