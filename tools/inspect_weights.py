"""Say what a weight file or folder is, how large its parts are, and what vesselseg does with it.

usage: python tools/inspect_weights.py PATH [--json]

PATH: a model folder, a repository of the hub (OWNER/NAME@REVISION), a SAM2 file or a training checkpoint.
Exit status 1: it can be read, but does not hold the model that its config describes.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from vesselseg.models.checkpoints.inspection import Inspection, inspect
from vesselseg.run_tool import run_tool


def main() -> int:
    """Parse arguments, inspect, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", help="folder, OWNER/NAME@REVISION of the hub, .pt or .pth file")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    args = parser.parse_args()
    found = inspect(args.path)
    print(json.dumps({**asdict(found), "total": found.total}, indent=1) if args.json else table(found))
    return 1 if found.problem else 0


def table(found: Inspection) -> str:
    """One line per fact, then parameters by part."""
    types = ", ".join(f"{name} {count / 1e6:,.1f} M" for name, count in found.dtypes.items())
    details = {name: value for name, value in found.details.items() if value not in (None, {})}
    rows = {
        "path": found.path,
        "what": found.kind,
        "family": found.family,
        "size": f"{found.size / 2**30:,.2f} GiB in {found.files} file(s)",
        "types": types,
        "five tokens": found.new_tokens,
        **{name.replace("_", " "): str(value) for name, value in details.items()},
        "vesselseg": "refuses it, see below" if found.problem else found.use,
    }
    lines = [f"{name:<20}{value}" for name, value in rows.items()]
    lines += ["", f"{'part':<20}{'parameters':>14}"]
    lines += [f"{part:<20}{count / 1e6:>12,.2f} M" for part, count in found.parameters.items()]
    lines += [f"{'all':<20}{found.total / 1e6:>12,.2f} M"]
    return "\n".join([*lines, *(["", found.problem] if found.problem else [])])


if __name__ == "__main__":
    run_tool(main)
