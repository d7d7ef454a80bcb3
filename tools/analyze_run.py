"""The training report: losses, speed, memory, validation, overfitting, checkpoints, and the commands that come next.

    python tools/analyze_run.py work_dirs/mine
    python tools/analyze_run.py work_dirs/a work_dirs/b --out work_dirs/a_and_b

Reads work folders of vesselseg (log.jsonl), of mmengine and of xtuner (TIME/TIME.log, vis_data/scalars.json), or one of
these files. Runs that have crashed or still run are fine.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vesselseg.errors import UserError
from vesselseg.run_tool import run_tool
from vesselseg.training.logs.report import analyse_runs, summary_lines, write_analysis


def main() -> None:
    """Parse, read, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, metavar="WORK_DIR", help="folders of runs, or log files")
    parser.add_argument("--out", type=Path, help="folder to write (default for one run: WORK_DIR/analysis)")
    arguments = parser.parse_args()
    if arguments.out is None and (len(arguments.paths) > 1 or arguments.paths[0].is_file()):
        raise UserError("several runs, or a log file, need --out DIR: which folder to write")
    runs = analyse_runs(arguments.paths)
    page = write_analysis(runs, arguments.out or arguments.paths[0] / "analysis")
    for run in runs:
        print("\n".join(summary_lines(run)))
    print(f"report: {page}")


if __name__ == "__main__":
    run_tool(main)
