"""One training process; `bash tools/dist.sh train CONFIG GPUS` starts as many as needed.

usage: bash tools/dist.sh train CONFIG GPUS [--work-dir DIR] [--resume auto|PATH] [--force] [--skip-plan]
                                            [--find-micro-batch] [--profile [N]]
                                            [--cfg-options KEY=VALUE ...]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from vesselseg.cli.parameters import positive
from vesselseg.run_tool import run_tool
from vesselseg.training.console import muted, quieten_imports
from vesselseg.training.heartbeat import start_heartbeat

quieten_imports()
HEAD_START = 5.0  # seconds in which the first process's message about the same mistake ends the whole job


def main() -> None:
    """Check the config, train."""
    args = parse_arguments(sys.argv[1:])
    with muted():
        from vesselseg.config.load import load_config, parse_overrides
        from vesselseg.training.launch import LostProcessError, train

    config = load_config(args.config, parse_overrides(args.cfg_options))
    if args.find_micro_batch:
        from vesselseg.training.micro_batch_search import find_micro_batch

        found = find_micro_batch(config)
        if os.environ.get("RANK", "0") == "0":
            print(found)
        return
    work_dir = args.work_dir or Path("work_dirs") / args.config.stem
    try:
        options = {"resume": args.resume, "force": args.force, "skip_plan": args.skip_plan, "profile": args.profile}
        train(config, work_dir, **options)
    except LostProcessError:
        time.sleep(HEAD_START)  # the launcher ends this process meanwhile and names the one that failed
        raise


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Command line -> settings."""
    parser = argparse.ArgumentParser(
        prog="tools/dist.sh train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, help="a file of configs/")
    parser.add_argument("--work-dir", type=Path, help="where everything is written; default work_dirs/<config's name>")
    parser.add_argument("--resume", help="auto: the newest complete checkpoint of the work dir; or a checkpoint's path")
    parser.add_argument(
        "--force",
        action="store_true",
        help="move an earlier run's results aside and start anew; also go on where the memory plan says it cannot fit",
    )
    parser.add_argument("--skip-plan", action="store_true", help="do not plan the memory before training")
    parser.add_argument(
        "--find-micro-batch", action="store_true", help="try which micro-batch fits, print it, and do not train"
    )
    parser.add_argument(
        "--profile", nargs="?", type=positive, const=5, metavar="N", help="look closely at N iterations (5), train on"
    )
    parser.add_argument(
        "--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="settings to override, e.g. schedule.lr=1e-4"
    )
    return parser.parse_args(arguments)


def run() -> int:
    """main, with the same mistake told once instead of by every process."""
    rank = int(os.environ.get("RANK", "0"))
    start_heartbeat()
    try:
        main()
    except (Exception, SystemExit):
        if rank:
            time.sleep(HEAD_START)
        raise
    return 0


if __name__ == "__main__":
    run_tool(run)
