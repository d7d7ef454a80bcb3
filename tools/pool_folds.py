"""Put the results of all folds of a cross-validation together: means over all images, intervals that resample groups.

    python tools/pool_folds.py work_dirs/x_fold*/eval --out work_dirs/x_folds

Takes what tools/eval.py wrote for the test split of each fold of tools/make_folds.py, for tools/compare.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vesselseg.evaluation.pooled_folds import pool_folds, write_pooled
from vesselseg.evaluation.results import RESULTS_FILE
from vesselseg.output_folder import check_output
from vesselseg.reports.console import console_summary
from vesselseg.run_tool import run_tool


def main() -> None:
    """Parse, pool, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="results.json or its folder, per fold")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results; appears whole or not at all")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    parser.add_argument("--force", action="store_true", help="replace earlier results in --out")
    arguments = parser.parse_args()
    check_output(arguments.out, arguments.force, RESULTS_FILE)
    evaluation, folds = pool_folds(arguments.results, arguments.seed)
    file = write_pooled(evaluation, folds, arguments.out, arguments.force)
    print("\n".join(console_summary(evaluation)))
    for fold in folds:
        dice = fold.content["summary"]["dice"]["mean"]  # always defined: empty masks have their rule
        print(f"fold {fold.number} of {fold.of}: {len(fold.items)} items, Dice {dice:.4f}")
    print(f"results: {file}")


if __name__ == "__main__":
    run_tool(main)
