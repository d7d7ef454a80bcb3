"""Compare results of tools/eval.py image by image: difference with interval, Wilcoxon's test, wins, where they differ.

    python tools/compare.py work_dirs/mine/eval work_dirs/frangi_eval --metric dice --out work_dirs/comparison

Takes results.json files or the folders that hold them; with more than two, every pair is compared.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vesselseg.evaluation.comparison import compare, read_results
from vesselseg.output_folder import check_output
from vesselseg.reports.comparison_report import JSON, table_lines, write_comparison
from vesselseg.run_tool import run_tool


def main() -> None:
    """Parse, compare, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="two or more: A B [C ...]")
    parser.add_argument("--metric", default="dice", help="what decides (default: dice)")
    parser.add_argument("--common", action="store_true", help="compare the images that all have, instead of refusing")
    parser.add_argument("--out", type=Path, help="folder for page and JSON (default: the console's table alone)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    parser.add_argument("--force", action="store_true", help="replace an earlier comparison in --out")
    arguments = parser.parse_args()
    if len(arguments.results) < 2:
        parser.error("expected at least two results to compare")
    if arguments.out is not None:
        check_output(arguments.out, arguments.force, JSON)
    results = [read_results(path) for path in arguments.results]
    comparison = compare(results, arguments.metric, arguments.common, arguments.seed)
    print("\n".join(table_lines(comparison)))
    if arguments.out is not None:
        print(f"report: {write_comparison(comparison, arguments.out, arguments.force)}")


if __name__ == "__main__":
    run_tool(main)
