"""A study of variants over seeds: its flags, which trainings it takes, and what all of them share."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from vesselseg.errors import UserError


def study_parser(description: str | None, name: str, **defaults: Any) -> argparse.ArgumentParser:
    """The flags of a study. name: of its scratch folder. defaults: of `iterations`, `image_size`, `parallel`, ..."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="dataset folder of tools/prepare_data.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures")
    parser.add_argument("--variants", nargs="+", default=[], help="some of them; default all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--image-size", type=int, help="side of SAM2's view (default: %(default)s)")
    parser.add_argument("--parallel", type=int, help="trainings at a time (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="loading processes of each (default: %(default)s)")
    parser.add_argument("--budget-s", type=float, help="all runs end by then (default: %(default)s)")
    scratch = Path(tempfile.gettempdir()) / f"vesselseg_{name}"
    parser.add_argument("--scratch", type=Path, default=scratch, help="weights and runs (default: %(default)s)")
    parser.set_defaults(**defaults)
    return parser


def chosen(names: Collection[str], variants: Sequence[str], seeds: int) -> list[tuple[str, int]]:
    """(variant, seed) of every training: the named variants, or all, in the study's order; raises UserError.

    Seed after seed, so that a call that runs out of time has all variants of the first seeds.
    """
    unknown = set(names) - set(variants)
    if unknown:
        raise UserError(f"{', '.join(sorted(unknown))}: no such variant; there are {'; '.join(variants)}")
    return [(name, seed) for seed in range(seeds) for name in variants if name in (names or variants)]


def folder_name(variant: str, seed: int) -> str:
    """Of a training's work folder."""
    return "".join(letter if letter.isalnum() else "_" for letter in f"{variant} {seed}")


def shared_schedule(args: argparse.Namespace, lines: int, validations: int) -> dict[str, Any]:
    """Settings of the length, the data and the logs; `lines` points of a loss curve, so many `validations`."""
    return {
        "data_root": args.data.resolve(),
        "model.sa2va.sam2.image_size": args.image_size,
        "schedule.max_iters": args.iterations,
        "schedule.epochs": 10**6,
        "schedule.micro_batch": args.micro_batch,
        "loader.num_workers": args.workers,
        "logging.interval": max(1, args.iterations // lines),
        "logging.tensorboard": False,
        "validation.interval": max(1, args.iterations // validations),
        "checkpoint.interval": args.iterations,
        "checkpoint.keep": 1,
    }
