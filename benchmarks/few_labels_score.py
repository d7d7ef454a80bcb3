"""Score a model or predictions on the test split of a dataset folder and keep the masks.

usage: python benchmarks/few_labels_score.py SOURCE --data FOLDER --out DIR

The threshold is searched on the validation split, as by `vesselseg eval --threshold auto`, without its report.
DIR gets results.json and masks.npz: names of the images, shape (images, height, width) and packed bits of the masks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vesselseg.dataset.manifest import Record, read_manifest, read_split
from vesselseg.evaluation.evaluator import evaluate
from vesselseg.evaluation.options import AUTO
from vesselseg.evaluation.prediction_sources import open_predictions
from vesselseg.evaluation.results_file import write_json
from vesselseg.evaluation.threshold import apply_threshold
from vesselseg.inference.options import LoadOptions
from vesselseg.run_tool import run_tool

MASKS_FILE = "masks.npz"


class Kept:
    """A PredictionSource that keeps the probabilities of some images; all else is the source's own."""

    def __init__(self, source: Any, images: set[str]) -> None:
        self._source, self._images = source, images
        self.probabilities_of: dict[str, NDArray[np.float32]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def probabilities(self, records: Sequence[Record], images: Sequence[Any]) -> list[NDArray[np.float32]]:
        """Per image (phrases, height, width) float32."""
        found: list[NDArray[np.float32]] = self._source.probabilities(records, images)
        for record, values in zip(records, found):
            if record.image in self._images:
                self.probabilities_of[record.image] = values.max(axis=0)
        return found


def main() -> None:
    """Score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="checkpoint (.pth), exported model or folder of probabilities")
    parser.add_argument("--data", type=Path, required=True, help="dataset folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and masks.npz")
    parser.add_argument("--device", default="auto", help="of a model (default: %(default)s)")
    args = parser.parse_args()
    tested = [record.image for record in read_split(args.data, "test")]
    source = Kept(open_predictions(args.source, read_manifest(args.data), LoadOptions(device=args.device)), set(tested))
    evaluation = evaluate(args.data, "test", source, AUTO)
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(evaluation, args.out)
    masks = np.stack([apply_threshold(source.probabilities_of[image], evaluation.threshold.value) for image in tested])
    np.savez_compressed(args.out / MASKS_FILE, images=tested, shape=masks.shape, masks=np.packbits(masks))


if __name__ == "__main__":
    run_tool(main)
