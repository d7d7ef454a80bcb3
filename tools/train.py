"""`vesselseg train` from a checkout: `python tools/train.py --help` lists its options."""

import sys

from vesselseg.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))
