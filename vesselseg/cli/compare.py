"""`vesselseg compare`."""

from __future__ import annotations

from pathlib import Path

from vesselseg.cli.parameters import Force, Metric, Seed
from vesselseg.errors import UserError
from vesselseg.output_folder import check_output


def compare(
    results: list[Path],
    *,
    metric: Metric = "dice",
    common: bool = False,
    out: Path | None = None,
    seed: Seed = 0,
    force: Force = False,
) -> None:
    """Compare results of vesselseg eval image by image: difference with interval, Wilcoxon's test, wins.

    vesselseg compare work_dirs/mine/eval work_dirs/frangi_eval --metric dice --out work_dirs/comparison

    Takes results.json files or the folders that hold them; with more than two,
    every pair is compared. The page shows where they differ.

    Args:
        results: two or more: A B [C ...]
        common: compare the images that all have, instead of refusing
        out: folder for page and JSON (default: only the table on the console)
    """
    if len(results) < 2:
        raise UserError("expected at least two results to compare; see vesselseg compare --help")
    from vesselseg.evaluation.comparison import compare as compare_results
    from vesselseg.evaluation.comparison import read_results
    from vesselseg.reports.comparison_report import JSON, table_lines, write_comparison

    if out is not None:
        check_output(out, force, JSON)
    comparison = compare_results([read_results(path) for path in results], metric, common, seed)
    print("\n".join(table_lines(comparison)))
    if out is not None:
        print(f"report: {write_comparison(comparison, out, force)}")
