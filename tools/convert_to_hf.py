"""`vesselseg convert` from a checkout: `python tools/convert_to_hf.py --help` lists its options."""

import sys

from vesselseg.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["convert", *sys.argv[1:]]))
