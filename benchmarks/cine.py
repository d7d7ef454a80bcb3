"""Both modes of `segment_cine` on drawn cine runs with known truth, and on folders of frames.

usage: python benchmarks/cine.py MODEL --out cine.json [--folders ../shared/data/lymphatic_labelme]

For each way to segment a run: Dice over the frames that hold vessels; flicker (mean 1 - Dice of neighbouring masks),
with that of the truth and the change of the images; seconds per frame. `both ways` averages the probabilities of a
forward and a backward pass. In a folder of frames, `masks/.../NAME_mask.png` is the truth of `annotated/.../NAME.png`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import measure
from vesselseg.evaluation.flicker import flicker, mask_change
from vesselseg.inference.cine import segment_cine
from vesselseg.inference.load import load_predictor
from vesselseg.inference.predictor import Prediction, Predictor
from vesselseg.models.sam2_memory import memory_trained
from vesselseg.reports.panels import difference
from vesselseg.synthetic.cine import draw_cine

PHRASES = ["blood vessel"]
SHOWN = 8  # frames in a strip
Way = Callable[[Predictor, list[Image.Image]], list[Prediction]]


@dataclass(frozen=True)
class Run:
    """A cine run with its labels."""

    name: str
    frames: list[Image.Image]  # RGB
    truth: list[np.ndarray | None]  # (height, width) bool; None: not labelled


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write. argv: of the command line, the default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="exported folder or checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--folders", type=Path, help="folder with annotated/ and masks/, measured in addition")
    parser.add_argument("--runs", type=int, default=4, help="drawn runs (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=32, help="of each drawn run (default: %(default)s)")
    parser.add_argument("--size", type=int, default=512, help="their pixels per side (default: %(default)s)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--untrained", action="store_true", help="also measure a memory with random weights")
    parser.add_argument("--strip", type=Path, help="image to write: the first run, one row per way")
    arguments = parser.parse_args(argv)
    predictor = load_predictor(arguments.model, arguments.device)
    trained = memory_trained(predictor.grounding)
    if not trained and arguments.untrained:
        pass_as_trained(predictor)
    ways = WAYS if trained or arguments.untrained else {"frames": WAYS["frames"]}
    runs = [*drawn(arguments.runs, arguments.frames, arguments.size), *folders(arguments.folders)]
    list(segment_cine(predictor, runs[0].frames[:2], PHRASES))  # the first call loads kernels
    results: list[dict[str, Any]] = []
    strips: dict[str, list[np.ndarray]] = {}
    for run in runs:
        for name, way in ways.items():
            predictions, seconds = timed(way, predictor, run.frames)
            results.append({"run": run.name, "way": name, **figures(run, predictions, seconds)})
            print(json.dumps(results[-1]), flush=True)
            strips.setdefault(run.name, []).append(strip(run, predictions))
    rows = [summary(name, [row for row in results if row["way"] == name]) for name in ways]
    print(table(rows))
    content = {"model": arguments.model, "memory_trained": trained, "machine": measure(), "rows": rows, "runs": results}
    arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if arguments.strip:
        Image.fromarray(np.concatenate(strips[runs[0].name])).save(arguments.strip)


def every(count: int) -> Way:
    """Mode `memory` with a keyframe every `count` frames."""
    return lambda predictor, frames: list(segment_cine(predictor, frames, PHRASES, "memory", count))


def both_ways(count: int) -> Way:
    """`every`, forwards and backwards over the same keyframes, the last frame included."""

    def way(predictor: Predictor, frames: list[Image.Image]) -> list[Prediction]:
        last = len(frames) - 1
        chosen = sorted({*range(0, len(frames), count), last})
        ahead = list(segment_cine(predictor, frames, PHRASES, "memory", chosen))
        back = list(segment_cine(predictor, frames[::-1], PHRASES, "memory", [last - number for number in chosen]))
        return [
            replace(one, probabilities=(one.probabilities + two.probabilities) / 2).with_threshold(one.threshold)
            for one, two in zip(ahead, back[::-1])
        ]

    return way


WAYS: dict[str, Way] = {
    "frames": lambda predictor, frames: list(segment_cine(predictor, frames, PHRASES)),
    "memory, keyframe every 4": every(4),
    "memory, keyframe every 8": every(8),
    "memory, keyframe every 16": every(16),
    "memory, every 8, both ways": both_ways(8),
}


def pass_as_trained(predictor: Predictor) -> None:
    """Make `segment_cine` accept a random memory, which it detects by its equal layer scales: one of 256 is doubled."""
    with torch.no_grad():
        predictor.grounding.sam2.memory_encoder.fuser.layers[0].gamma[0] *= 2


def drawn(count: int, frames: int, size: int) -> Iterator[Run]:
    """Synthetic runs; no training uses their seeds."""
    for seed in range(count):
        cine = draw_cine(frames, size, seed)
        frames_rgb = [Image.fromarray(frame).convert("RGB") for frame in cine.frames]
        yield Run(f"drawn {seed}", frames_rgb, list(cine.masks))


def folders(root: Path | None) -> Iterator[Run]:
    """Every folder below annotated/ with images, in the order of their names."""
    if root is None:
        return
    labelled = root / "annotated"
    for folder in sorted({path.parent for path in labelled.rglob("*.png")}):
        paths = sorted(folder.glob("*.png"))
        masks = [root / "masks" / path.relative_to(labelled).with_name(f"{path.stem}_mask.png") for path in paths]
        truth = [np.array(Image.open(path).convert("L")) > 127 if path.exists() else None for path in masks]
        yield Run(folder.name, [Image.open(path).convert("RGB") for path in paths], truth)


def timed(way: Way, predictor: Predictor, frames: list[Image.Image]) -> tuple[list[Prediction], float]:
    """Predictions and seconds per frame."""
    started = time.perf_counter()
    predictions = way(predictor, frames)
    return predictions, (time.perf_counter() - started) / len(frames)


def figures(run: Run, predictions: Sequence[Prediction], seconds: float) -> dict[str, Any]:
    """Dice of the frames with vessels in their truth; flicker over all frames, that of the truth where all have one.

    found_in_empty: mean share of pixels in the masks of frames without vessels. seconds: per frame.
    """
    masks = [found.masks[0] for found in predictions]
    scores = [1 - mask_change([mask, true]) for mask, true in zip(masks, run.truth) if true is not None and true.any()]
    empty = [float(mask.mean()) for mask, true in zip(masks, run.truth) if true is not None and not true.any()]
    truth = [true for true in run.truth if true is not None]
    whole = truth if len(truth) == len(masks) else None
    changes = flicker(masks, whole, [np.asarray(frame) for frame in run.frames])
    return {
        "dice": float(np.mean(scores)) if scores else None,
        "found_in_empty": float(np.mean(empty)) if empty else None,
        "mask_share": float(np.mean([mask.mean() for mask in masks])),
        "s_per_frame": seconds,
        "flicker": changes.as_json(),
        "dice_per_frame": [round(score, 4) for score in scores],
    }


def summary(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the drawn runs (`drawn_...`) and over the folders (`real_...`)."""
    kinds = {"drawn": [row for row in rows if row["run"].startswith("drawn ")]}
    kinds["real"] = [row for row in rows if row not in kinds["drawn"]]
    means: dict[str, Any] = {"way": name}
    for kind, of_kind in kinds.items():
        for key in ("dice", "found_in_empty", "s_per_frame"):
            means[f"{kind}_{key}"] = _mean([row[key] for row in of_kind])
        for key in ("masks", "truth", "images", "to_truth", "to_images"):
            means[f"{kind}_{key}"] = _mean([row["flicker"][key] for row in of_kind])
    return means


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def strip(run: Run, predictions: Sequence[Prediction]) -> np.ndarray:
    """Up to SHOWN frames in a row, half size: hits, misses and false positives in colour."""
    chosen = np.linspace(0, len(predictions) - 1, min(SHOWN, len(predictions))).round().astype(int)
    pictures = []
    for number in chosen:
        image, found = np.asarray(run.frames[number]), predictions[number].masks[0]
        true = run.truth[number]
        pictures.append(difference(image, found, np.zeros_like(found) if true is None else true))
    return np.concatenate(pictures, axis=1)[::2, ::2]


COLUMNS = {
    "Dice": ("drawn_dice", 3),
    "flicker": ("drawn_masks", 3),
    "/ truth's": ("drawn_to_truth", 2),
    "/ images'": ("drawn_to_images", 1),
    "s / frame": ("drawn_s_per_frame", 3),
    "real: Dice": ("real_dice", 3),
    "flicker ": ("real_masks", 3),
    "/ images' ": ("real_to_images", 1),
}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """As Markdown."""
    lines = [f"| way | {' | '.join(name.strip() for name in COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row in rows:
        cells = ["" if row[key] is None else f"{row[key]:.{digits}f}" for key, digits in COLUMNS.values()]
        lines.append(f"| {row['way']} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
