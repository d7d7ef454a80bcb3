"""`vesselseg prepare` from a checkout: `python tools/prepare_data.py --help` lists its options."""

import sys

from vesselseg.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["prepare", *sys.argv[1:]]))
