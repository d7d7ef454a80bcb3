"""Write what an evaluation found into the model card of the model that was evaluated.

    python tools/model_card.py work_dirs/mine/hf work_dirs/mine/eval

README.md of the folder gets a section with figures, intervals, threshold and what they do not say, and the hub's
model-index; the rest of it stays as it is. Results of another model, of its training images or of another dataset are
refused.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vesselseg.export.card_results import add_results
from vesselseg.run_tool import run_tool


def main() -> None:
    """Parse, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder that tools/convert_to_hf.py wrote")
    parser.add_argument("results", type=Path, help="results.json, or the folder that tools/eval.py wrote")
    parser.add_argument(
        "--other-data", action="store_true", help="scored on another dataset than trained on; the card says so"
    )
    arguments = parser.parse_args()
    print(f"card: {add_results(arguments.model, arguments.results, arguments.other_data)}")


if __name__ == "__main__":
    run_tool(main)
