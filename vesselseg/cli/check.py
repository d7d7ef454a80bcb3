"""`vesselseg check`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from vesselseg.cli.parameters import Data, Quiet
from vesselseg.output_folder import check_output, whole_folder

if TYPE_CHECKING:
    from vesselseg.inspect.checks.measure_image import ImageStatistics
    from vesselseg.inspect.checks.result import CheckResult


def check(
    data: Data,
    *,
    out: Path | None = None,
    fix: Path | None = None,
    force: Annotated[bool, Parameter(help="replace an earlier --out or --fix folder")] = False,
    workers: int = 0,
    quiet: Quiet = False,
) -> int:
    """Check a dataset folder: leaks between splits, repeated pictures, labels and masks that look wrong, drift.

    vesselseg check data/NAME
    vesselseg check data/NAME --fix data/NAME_fixed

    Writes check.json and check.html into the dataset folder, or into --out. --fix
    writes a new dataset folder and leaves the old one as it is, byte by byte.
    Exit status: 0 nothing serious, 1 serious findings (with --fix: those that
    remain), 2 bad input.

    Args:
        out: folder for check.json and check.html (default: DATA itself)
        fix: write a new dataset folder without what rules can correct, with the check of it
        workers: processes (0: all cores)
    """
    from vesselseg.inspect.checks.check import CHECK_FILE, CHECK_PAGE, check_dataset, write_check
    from vesselseg.inspect.checks.fix import fix_dataset

    for folder, marker in ((out, CHECK_FILE), (fix, "annotations.json")):
        if folder is not None:
            check_output(folder, force, marker)
    look = partial(check_dataset, workers=workers, track=partial(progress, quiet=quiet))
    found = look(data)
    if out is not None:
        with whole_folder(out, force, CHECK_FILE) as building:
            write_check(found, building)
    elif fix is None:
        write_check(found, data)
    print("\n".join(summary_lines(found)))
    if fix is None:
        print(f"report: {(out or data) / CHECK_PAGE}")
        return int(found.serious)
    plan, after = fix_dataset(found, fix, look, force)
    print(f"changes: {len(plan.changes)}\n" + "".join(f"  {change}\n" for change in plan.changes), end="")
    print("\n".join(summary_lines(after)))
    print(f"report: {fix / CHECK_PAGE}")
    return int(after.serious)


def progress(facts: Iterable[ImageStatistics], total: int, quiet: bool) -> Iterable[ImageStatistics]:
    """The images' facts, with a bar that counts them."""
    from tqdm import tqdm

    return tqdm(facts, total=total, unit="image", desc="checking", disable=quiet)


def summary_lines(result: CheckResult) -> list[str]:
    """Images, groups, and the number of findings of each kind."""
    measured, counts = result.measured, result.counts
    groups = len({record.group_key for record in measured.records})
    lines = [
        f"{measured.folder}: {len(measured.records)} images of {groups} groups: {counts['serious']} serious, "
        f"{counts['check']} to check, {counts['information']} for information"
    ]
    for _, group in groupby(result.findings, key=lambda finding: finding.code):
        found = list(group)
        lines.append(f"  {len(found):5d}  {found[0].kind.title} ({found[0].kind.severity}): {found[0].reason}")
    return lines
