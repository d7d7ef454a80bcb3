"""Write a config for weights, data and GPUs at hand: ZeRO-2, with offload, or ZeRO-3, by size and memory.

usage: python tools/new_config.py --base PATH --data data/NAME --gpus 4 --gpu-gib 24 --out configs/mine.py
                                  [--sam2 weights/sam2_hiera_large.pt|none] [--force]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vesselseg.run_tool import run_tool
from vesselseg.training.console import muted, quieten_imports

quieten_imports()


def main() -> int:
    """Parse arguments, write the config, say why it is as it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="model folder, or OWNER/NAME@REVISION of the hub")
    parser.add_argument("--data", type=Path, required=True, help="dataset folder made by tools/prepare_data.py")
    parser.add_argument("--gpus", type=_count, required=True, help="GPUs of this machine; 0: the CPU")
    parser.add_argument("--gpu-gib", type=_memory, default=24.0, help="memory of each in GiB (default: 24)")
    parser.add_argument("--sam2", default="weights/sam2_hiera_large.pt", help="SAM2's file; none: random weights")
    parser.add_argument("--out", type=Path, required=True, help="file in configs/ to write")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    args = parser.parse_args()
    with muted():
        from vesselseg.training.recipe import RecipeRequest, write_leaf

    sam2 = None if args.sam2 == "none" else args.sam2
    reason = write_leaf(RecipeRequest(args.base, args.data, args.gpus, args.gpu_gib, sam2), args.out, args.force)
    print(f"{args.out}: {reason}")
    print(f"start it with: bash tools/dist.sh train {args.out} {args.gpus}")
    return 0


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def _memory(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


if __name__ == "__main__":
    run_tool(main)
