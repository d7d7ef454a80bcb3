"""`vesselseg predict`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from vesselseg.cli.parameters import Batch, Flat, Loading, Steps, text_parser
from vesselseg.inference.options import DEFAULT_LOADING, LoadOptions
from vesselseg.inference.post_processing import NO_POST_PROCESSING
from vesselseg.predict.options import PredictOptions

if TYPE_CHECKING:
    from vesselseg.predict.options import Outcome

STORED = "stored"
_SHOWN, _NAMED = 20, 3


def threshold_of(text: str) -> float | None:
    """A probability, or None: the one stored with the model."""
    if text == STORED:
        return None
    if text == "auto":
        raise ValueError(
            "auto: searching needs labelled images, which vesselseg eval has (--threshold auto, with --store-threshold "
            f"to keep what it finds); expected a number between 0 and 1, or {STORED}"
        )
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise ValueError(f"{text!r}: expected a number between 0 and 1, or {STORED}")
    return value


def words(text: str) -> tuple[str, ...]:
    """Words between commas, each once."""
    return tuple(dict.fromkeys(word.strip() for word in text.split(",")))


def keyframes_of(text: str) -> int | tuple[int, ...]:
    """A spacing, or frame numbers between commas."""
    numbers = text.split(",")
    if not all(number.strip().isdecimal() for number in numbers) or text.strip() == "0":
        raise ValueError(f"{text!r}: expected a whole number from 1, or frames, e.g. 0,12,40")
    return tuple(map(int, numbers)) if len(numbers) > 1 else int(text)


@dataclass(frozen=True)
class Options(PredictOptions):
    """`PredictOptions`, by the names of the command line."""

    phrases: Annotated[tuple[str, ...], Parameter(name="--phrase")] = PredictOptions.phrases
    threshold: Annotated[
        float | None, Parameter(converter=text_parser(threshold_of), n_tokens=1, show_default=False)
    ] = PredictOptions.threshold
    save: Annotated[tuple[str, ...], Parameter(converter=text_parser(words), n_tokens=1)] = PredictOptions.save
    batch: Batch = PredictOptions.batch
    keyframes: Annotated[
        Any,
        Parameter(converter=text_parser(keyframes_of), n_tokens=1, show_default=False),
    ] = PredictOptions.keyframes
    post_processing: Steps = NO_POST_PROCESSING


def predict(
    model: str,
    input: Path,
    *,
    out: Path,
    options: Annotated[Options, Flat] = Options(),
    loading: Annotated[LoadOptions, Loading] = DEFAULT_LOADING,
) -> int:
    """Segment images, videos and DICOM files with a trained model: one file, a folder, or a list of paths.

    vesselseg predict MODEL INPUT --out DIR --phrase "blood vessel" --save masks,probs,overlay,labelme,coco
    vesselseg predict MODEL RUN.dcm --out DIR --save overlay,dicom-seg --cine memory --keyframes 8
    torchrun --nproc-per-node 4 -m vesselseg predict MODEL INPUT --out DIR

    Below DIR: masks/*.png (0 and 255), probabilities/*.png (16 bits, probability = value / 65535), overlays/*.png, of
    clips also overlays/*.mp4, labelme/*.json (polygons; vesselseg prepare DIR/labelme makes training data of corrected
    ones), dicom-seg/*.dcm, coco.json, predictions.json (per file what was found, or why not). A result is named as its
    image, with the phrase added where several are given; a frame of a clip NAME is NAME/00012, counted from 0. The same
    call again goes on where it was interrupted. Exit status: 0 all done, 1 some files failed, 2 bad input. More:
    docs/predicting.md.

    Args:
        model: exported model folder, model of the hub, or checkpoint (.pth)
        input: image, video, DICOM file, folder, or .txt file with one path per line
        out: new folder, or one to go on with
    """
    from vesselseg.predict.run import predict_files

    outcome = predict_files(model, input, out, options, partial(loading.predictor, model))
    if outcome is None:  # under torchrun the first process reports
        return 0
    report(outcome, out, options)
    return 1 if outcome.failed else 0


def report(outcome: Outcome, out: Path, options: PredictOptions) -> None:
    """What became of the files, and what to do next."""
    skipped = f", {outcome.skipped} finished before" if outcome.skipped else ""
    print(f"{out}: {outcome.predicted} predicted{skipped}, {len(outcome.failed)} failed")
    if outcome.others:
        print(f"  and as they were: results of earlier calls for {outcome.others} files that are not in this input")
    if outcome.kept:
        named = ", ".join(outcome.kept[:_NAMED]) + (", ..." if len(outcome.kept) > _NAMED else "")
        print(f"  LabelMe files kept as they are, since they were edited: {len(outcome.kept)} ({named})")
    if outcome.kept and "labelme" in options.save:
        print("  delete or move them, and the same call puts the model's in their place")
    for file, reason in outcome.failed[:_SHOWN]:
        print(f"  {file}: {reason}", file=sys.stderr)
    if len(outcome.failed) > _SHOWN:
        print(f"  and {len(outcome.failed) - _SHOWN} more, see predictions.json", file=sys.stderr)
    print(next_step(out, options))


def next_step(out: Path, options: PredictOptions) -> str:
    """The command that the results are for."""
    if "labelme" in options.save:
        return f"next: correct {out}/labelme in LabelMe, then vesselseg prepare {out}/labelme --out data/NAME"
    folder = "probabilities" if "probs" in options.save else "masks"
    if {"probs", "masks"} & set(options.save) and len(options.phrases) == 1:
        return f"next, for images with labels: vesselseg eval {out / folder} --data data/NAME --out {out}_eval"
    return "next: the same call with --save labelme writes files that LabelMe corrects and vesselseg prepare reads"
