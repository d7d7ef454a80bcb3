"""Segment images, videos and DICOM files with a trained model: one file, a folder, or a list of paths.

    python tools/predict.py MODEL INPUT --out DIR --phrase "blood vessel" --save masks,probs,overlay,labelme,coco
    python tools/predict.py MODEL RUN.dcm --out DIR --save overlay,dicom-seg --cine memory --keyframes 8
    torchrun --nproc-per-node 4 tools/predict.py MODEL INPUT --out DIR

Below DIR: masks/*.png (0 and 255), probabilities/*.png (16 bits, probability = value / 65535), overlays/*.png, of clips
also overlays/*.mp4, labelme/*.json (polygons; tools/prepare_data.py DIR/labelme makes training data of corrected ones),
dicom-seg/*.dcm, coco.json, predictions.json (per file what was found, or why not). A result is named as its image, with
the phrase added where several are asked; a frame of a clip NAME is NAME/00012, counted from 0. The same call again goes
on where it was interrupted. Exit status: 0 all done, 1 some files failed, 2 bad input. More: docs/predicting.md.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vesselseg.dataset.prompts import DEFAULT_PHRASE
from vesselseg.inference.flips import FLIPS
from vesselseg.inference.model_arguments import add_model_arguments, add_refining_arguments, load_chosen
from vesselseg.run_tool import positive, run_tool

if TYPE_CHECKING:
    from vesselseg.predict.options import Outcome

_SHOWN, _NAMED = 20, 3


def main() -> int:
    """Parse, predict, say what became of the files."""
    arguments = _arguments()
    # The model's libraries take many seconds to import: --help and wrong arguments are answered without them.
    from vesselseg.inference.post_processing import PostProcessing
    from vesselseg.predict.options import PredictOptions
    from vesselseg.predict.predict_files import predict_files

    options = PredictOptions(
        phrases=tuple(arguments.phrase or [DEFAULT_PHRASE]),
        threshold=arguments.threshold,
        save=arguments.save,
        batch=arguments.batch,
        cine=arguments.cine,
        keyframes=arguments.keyframes,
        flips=arguments.tta == FLIPS,
        post_processing=PostProcessing(arguments.min_component, arguments.fill_holes),
    )
    load = partial(load_chosen, arguments.model, arguments)
    outcome = predict_files(arguments.model, arguments.input, arguments.out, options, load)
    if outcome is None:  # under torchrun the first process tells
        return 0
    _tell(outcome, arguments.out, "labelme" in options.save)
    return 1 if outcome.failed else 0


def _tell(outcome: Outcome, out: Path, labels_wanted: bool) -> None:
    skipped = f", {outcome.skipped} finished before" if outcome.skipped else ""
    print(f"{out}: {outcome.predicted} predicted{skipped}, {len(outcome.failed)} failed")
    if outcome.others:
        print(f"  and as they were: results of earlier calls for {outcome.others} files that are not in this input")
    if outcome.kept:
        named = ", ".join(outcome.kept[:_NAMED]) + (", ..." if len(outcome.kept) > _NAMED else "")
        print(f"  LabelMe files kept as they are, since they were edited: {len(outcome.kept)} ({named})")
    if outcome.kept and labels_wanted:
        print("  delete or move them, and the same call puts the model's in their place")
    for file, reason in outcome.failed[:_SHOWN]:
        print(f"  {file}: {reason}", file=sys.stderr)
    if len(outcome.failed) > _SHOWN:
        print(f"  and {len(outcome.failed) - _SHOWN} more, see predictions.json", file=sys.stderr)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="exported model folder, model of the hub, or checkpoint (.pth)")
    parser.add_argument(
        "input", type=Path, help="image, video, DICOM file, folder, or .txt file with one path per line"
    )
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
        help="some of masks,probs,overlay,labelme,coco,dicom-seg (default: masks,overlay)",
    )
    parser.add_argument("--batch", type=positive, default=4, help="images given to the model at once (default: 4)")
    parser.add_argument(
        "--cine",
        choices=("frames", "memory"),
        default="frames",
        help="frames of a clip: each on its own (default), or by SAM2's memory of keyframes",
    )
    parser.add_argument(
        "--keyframes",
        type=_keyframes,
        metavar="N|LIST",
        help="with --cine memory: every so many frames, or 0,12,40 (default: 8)",
    )
    add_refining_arguments(parser)
    add_model_arguments(parser)
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


def _keyframes(text: str) -> int | tuple[int, ...]:
    numbers = text.split(",")
    if not all(number.strip().isdecimal() for number in numbers) or text.strip() == "0":
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number from 1, or frames, e.g. 0,12,40")
    return tuple(map(int, numbers)) if len(numbers) > 1 else int(text)


if __name__ == "__main__":
    run_tool(main)
