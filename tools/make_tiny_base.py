"""Write a small InternVL folder with random weights, to try everything without downloads.

usage: python tools/make_tiny_base.py OUT [--hidden-size 64] [--layers 2] [--tile-size 112] [--seed 0]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vesselseg.models.tiny_base import write_tiny_base
from vesselseg.run_tool import run_tool


def main() -> int:
    """Parse arguments, write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--hidden-size", type=int, default=64, help="width of vision tower and language model")
    parser.add_argument("--layers", type=int, default=2, help="layers of each")
    parser.add_argument("--tile-size", type=int, default=112, help="side of an image tile in pixels, a multiple of 28")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    config = write_tiny_base(
        args.out, hidden_size=args.hidden_size, layers=args.layers, tile_size=args.tile_size, seed=args.seed
    )
    vocabulary = config.llm_config["vocab_size"]
    print(f"{args.out}: InternVL folder, {config.tokens_per_tile} tokens per tile, vocabulary {vocabulary}")
    return 0


if __name__ == "__main__":
    run_tool(main)
