"""`vesselseg eval` from a checkout: `python tools/eval.py --help` lists its options."""

import sys

from vesselseg.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["eval", *sys.argv[1:]]))
