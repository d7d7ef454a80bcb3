"""`vesselseg predict` from a checkout: `python tools/predict.py --help` lists its options."""

import sys

from vesselseg.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["predict", *sys.argv[1:]]))
