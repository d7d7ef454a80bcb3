"""Segment an image, a folder of images or a list of paths with a trained model.

    python tools/predict.py MODEL INPUT --out DIR --phrase "blood vessel" --save masks,probs,overlay,labelme,coco

Below DIR: masks/*.png (0 and 255), probabilities/*.png (16 bits, probability = value / 65535), overlays/*.png,
labelme/*.json (polygons; tools/prepare_data.py DIR/labelme makes training data of corrected ones), coco.json,
predictions.json (per file what was found, or why not). A result is named as its image, with the phrase added where
several are asked. The same call again goes on where it was interrupted. Exit status: 0 all done, 1 some files failed,
2 bad input.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vesselseg.cli import run_tool

DEFAULT_PHRASE = "blood vessel"
_SHOWN = 20


def main() -> int:
    """Parse, predict, say what became of the files."""
    arguments = _arguments()
    # The model's libraries take many seconds to import: --help and wrong arguments are answered without them.
    from vesselseg.inference.predict_files import Outcome, PredictOptions, predict_files

    options = PredictOptions(
        tuple(arguments.phrase or [DEFAULT_PHRASE]), arguments.threshold, arguments.save, arguments.batch
    )
    outcome: Outcome = predict_files(
        arguments.model, arguments.input, arguments.out, options, arguments.device, arguments.base
    )
    skipped = f", {outcome.skipped} finished before" if outcome.skipped else ""
    print(f"{arguments.out}: {outcome.predicted} predicted{skipped}, {len(outcome.failed)} failed")
    for file, reason in outcome.failed[:_SHOWN]:
        print(f"  {file}: {reason}", file=sys.stderr)
    if len(outcome.failed) > _SHOWN:
        print(f"  and {len(outcome.failed) - _SHOWN} more, see predictions.json", file=sys.stderr)
    return 1 if outcome.failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="exported model folder, model of the hub, or checkpoint (.pth)")
    parser.add_argument("input", type=Path, help="image, folder, or .txt file with one path per line")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder, or one to go on with")
    parser.add_argument("--phrase", action="append", help=f"what to segment; repeat for several ({DEFAULT_PHRASE})")
    parser.add_argument(
        "--threshold", type=_threshold, help="a probability, or auto: the one stored with the model (default)"
    )
    parser.add_argument(
        "--save",
        type=_words,
        default=("masks", "overlay"),
        metavar="KINDS",
        help="some of masks,probs,overlay,labelme,coco (default: masks,overlay)",
    )
    parser.add_argument("--batch", type=_positive, default=4, help="images given to the model at once (default: 4)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto)")
    parser.add_argument("--base", help="a checkpoint's base folder, if it has moved since training")
    return parser.parse_args()


def _threshold(text: str) -> float | None:
    if text == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number between 0 and 1, or auto")
    return value


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.split(",")))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1")
    return int(text)


if __name__ == "__main__":
    run_tool(main)
