"""Check a dataset folder: leaks between splits, repeated pictures, labels and masks that look wrong, drift.

    python tools/check_data.py data/NAME
    python tools/check_data.py data/NAME --fix data/NAME_fixed

Writes check.json and check.html into the dataset folder, or into --out. --fix writes a new dataset folder and leaves
the old one as it is, byte by byte. Exit status: 0 nothing serious, 1 serious findings (with --fix: those that remain),
2 bad input.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from functools import partial
from itertools import groupby
from pathlib import Path

from tqdm import tqdm

from vesselseg.inspect.checks.check import CHECK_FILE, CHECK_PAGE, check_dataset, write_check
from vesselseg.inspect.checks.fix import fix_dataset
from vesselseg.inspect.checks.measure_image import ImageStatistics
from vesselseg.inspect.checks.result import CheckResult
from vesselseg.output_folder import check_output, whole_folder
from vesselseg.run_tool import run_tool


def main() -> int:
    """Parse, check, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="dataset folder, or a fold of it")
    parser.add_argument("--out", type=Path, help="folder for check.json and check.html (default: DATA itself)")
    parser.add_argument("--fix", type=Path, metavar="NEW", help="write a new dataset folder without what rules can set "
                        "right; the check of it lies in it")  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace an earlier --out or --fix folder")
    parser.add_argument("--workers", type=int, default=0, help="processes (default: all cores)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    arguments = parser.parse_args()
    for out, marker in ((arguments.out, CHECK_FILE), (arguments.fix, "annotations.json")):
        if out is not None:
            check_output(out, arguments.force, marker)
    look = partial(check_dataset, workers=arguments.workers, track=partial(_progress, quiet=arguments.quiet))
    check = look(arguments.data)
    if arguments.out is not None:
        with whole_folder(arguments.out, arguments.force, CHECK_FILE) as building:
            write_check(check, building)
    elif arguments.fix is None:
        write_check(check, arguments.data)
    print("\n".join(_told(check)))
    if arguments.fix is None:
        print(f"report: {(arguments.out or arguments.data) / CHECK_PAGE}")
        return int(check.serious)
    plan, after = fix_dataset(check, arguments.fix, look, arguments.force)
    print(f"changes: {len(plan.changes)}\n" + "".join(f"  {change}\n" for change in plan.changes), end="")
    print("\n".join(_told(after)))
    print(f"report: {arguments.fix / CHECK_PAGE}")
    return int(after.serious)


def _progress(facts: Iterable[ImageStatistics], total: int, quiet: bool) -> Iterable[ImageStatistics]:
    return tqdm(facts, total=total, unit="image", desc="checking", disable=quiet)


def _told(check: CheckResult) -> list[str]:
    measured, counts = check.measured, check.counts
    groups = len({record.group_key for record in measured.records})
    lines = [
        f"{measured.folder}: {len(measured.records)} images of {groups} groups: {counts['serious']} serious, "
        f"{counts['check']} to check, {counts['information']} for information"
    ]
    for _, group in groupby(check.findings, key=lambda finding: finding.code):
        found = list(group)
        lines.append(f"  {len(found):5d}  {found[0].kind.title} ({found[0].kind.severity}): {found[0].reason}")
    return lines


if __name__ == "__main__":
    run_tool(main)
