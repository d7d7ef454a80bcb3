"""Memory and time of a training from shapes alone: no weights, no GPU, the base's config.json and tokenizer suffice.

usage: python tools/plan_memory.py CONFIG --gpus 4 --gpu-gib 24 [--card 3090] [--images N] [--json]
                                   [--cfg-options KEY=VALUE ...]

Exit status: 0 it fits, 1 it does not, 2 bad input.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vesselseg.run_tool import run_tool
from vesselseg.training.console import muted, quieten_imports

quieten_imports()


def main() -> int:
    """Parse arguments, plan, print."""
    args = parse_arguments()
    with muted():
        from vesselseg.config.load import load_config, parse_overrides
        from vesselseg.training.memory_plan.cards import card_named
        from vesselseg.training.memory_plan.changes import proposals
        from vesselseg.training.memory_plan.plan import Target, plan_memory, usable_bytes
        from vesselseg.training.memory_plan.report import json_report, text_report

    card = card_named(args.card) if args.card else None
    gib = args.gpu_gib or (card.gib if card else 24.0)
    usable = usable_bytes(gib, args.gpus) if args.gpus else None
    target = Target(max(1, args.gpus), usable, card, args.images)
    config = load_config(args.config, parse_overrides(args.cfg_options))
    plan = plan_memory(config, target)
    proposed = [] if plan.fits else proposals(config, target)
    print(json.dumps(json_report(plan, proposed), indent=1) if args.json else text_report(plan, proposed))
    return 0 if plan.fits else 1


def parse_arguments() -> argparse.Namespace:
    """Command line -> settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="a file of configs/")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs, all of one machine; 0: one process on the CPU")
    parser.add_argument("--gpu-gib", type=float, help="memory of each in GiB (default: the card's, or 24)")
    parser.add_argument("--card", help="3090, 4090, A100, H100 or H200: adds an estimate of the time")
    parser.add_argument("--images", type=int, help="training images to plan for (default: those of data_root)")
    parser.add_argument("--json", action="store_true", help="as JSON, see docs/memory_plan.md")
    parser.add_argument(
        "--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="settings to override, e.g. schedule.lr=1e-4"
    )
    args = parser.parse_args()
    if (
        args.gpus < 0
        or (args.gpu_gib is not None and args.gpu_gib <= 0)
        or (args.images is not None and args.images < 1)
    ):
        parser.error("--gpus takes 0 or more, --gpu-gib and --images take numbers above 0")
    return args


if __name__ == "__main__":
    run_tool(main)
