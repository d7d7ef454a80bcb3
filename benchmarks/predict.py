"""Speed and memory of predicting at full shapes, each row in its own process, next to the published way.

usage: python benchmarks/predict.py --out DIR [--rows NAME ...] [--data FOLDER] [--budget-s 540]

Rows come from benchmarks/predict_rows.yaml. DIR gets predict.json and predict.md, rewritten after every row. Weights
are random, shapes are the published ones, images are 512x512. The time is that of `Predictor.predict`, from images in
main memory to probabilities in main memory at the image's size, including the preparation of views on the CPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cine import pass_as_trained
from benchmarks.shapes import TINY, write_base
from vesselseg.dataset.image_views import logits_to_image
from vesselseg.dataset.prompts import question_for
from vesselseg.inference.cine import segment_cine
from vesselseg.inference.greedy_decoding import greedy_decode, question_ids
from vesselseg.inference.load import FROZEN, default_dtype
from vesselseg.inference.predictor import Predictor
from vesselseg.inference.processor import processor_for
from vesselseg.inference.prompted_predictor import PromptedPredictor
from vesselseg.inference.sa2va_predictor import Sa2VAPredictor
from vesselseg.machine import GIB
from vesselseg.models.build import build_model
from vesselseg.models.checkpoints.base_folder import read_base_folder
from vesselseg.models.prompted_config import PromptedSAM2Config
from vesselseg.models.prompted_sam2 import build_prompted, place
from vesselseg.models.sam2_memory import memory_trained
from vesselseg.synthetic.angiograms import draw_angiogram

ROWS = Path(__file__).with_name("predict_rows.yaml")
REPOSITORY = Path(__file__).resolve().parents[1]
SAM2_ALONE = {"sam2_large": "large", "sam2_tiny": "tiny"}
PHRASES = ["blood vessel", "catheter", "left anterior descending artery"]
ANSWER_TOKENS = 8  # tokens of "Sure, it is [SEG].", which the published code decodes one by one
IMAGES, LONGEST_S = 96, 12.0
KEYFRAME_INTERVAL = CINE_BATCH = 8  # frames
Images = Sequence[Image.Image]
Way = Callable[[Predictor, Images], Iterable[int]]  # yields the number of images of each finished batch


@dataclass(frozen=True)
class Row:
    """One model of predict_rows.yaml and the ways to predict with it."""

    name: str
    size: str  # 2B, 8B, 14B, 26B, tiny; sam2_large and sam2_tiny: SAM2 with a fixed phrase, without a language model
    ways: tuple[str, ...]  # keys of WAYS
    quantise: str | None = None  # nf4 or int8; None: bf16, on the CPU float32
    gpus: int = 1
    cap_gib: float | None = None  # of the allocator, per GPU; None: all of it
    image_size: int = 1024  # side of SAM2's view in pixels
    device: str = "auto"
    images: int = IMAGES  # predicted at most in each way


def main() -> None:
    """Rows one after the other, each in its own process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", help="names (default: all that this machine has GPUs for)")
    parser.add_argument("--file", type=Path, default=ROWS, help="YAML file of rows (default: %(default)s)")
    parser.add_argument("--data", type=Path, help="dataset folder with real images (default: drawn angiograms)")
    parser.add_argument("--budget-s", type=float, default=540.0, help="no row starts later (default: %(default)s)")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    rows = read_rows(args.file)
    if args.one:
        print(json.dumps(measure(next(row for row in rows if row.name == args.one), args.data)))
        return
    started, results = time.monotonic(), []
    args.out.mkdir(parents=True, exist_ok=True)
    for row in rows:
        if row.name in (args.rows or [row.name]) and row.gpus <= max(1, torch.cuda.device_count()):
            if time.monotonic() - started > args.budget_s:
                print(f"no time left for {row.name}", flush=True)
                continue
            results += measure_in_subprocess(row, args)
            (args.out / "predict.json").write_text(json.dumps(results, indent=1))
            (args.out / "predict.md").write_text(table(results))
    print(table(results))


def read_rows(file: Path) -> list[Row]:
    """The rows of a YAML file, a list of mappings."""
    return [Row(**{**row, "ways": tuple(row["ways"])}) for row in yaml.safe_load(file.read_text(encoding="utf-8"))]


def measure_in_subprocess(row: Row, args: argparse.Namespace) -> list[dict[str, Any]]:
    """`measure` in a new process; a row that fails gives one result with the last line of its output as `error`."""
    command = [sys.executable, __file__, "--out", str(args.out), "--file", str(args.file), "--one", row.name]
    command += ["--data", str(args.data)] if args.data else []
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return [{**asdict(row), "way": "", "error": reason}]
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def measure(row: Row, data: Path | None) -> list[dict[str, Any]]:
    """One result for each way of a row, all with the same weights."""
    torch.manual_seed(0)
    if torch.cuda.is_available():
        for gpu in range(row.gpus):
            if row.cap_gib:
                whole = torch.cuda.get_device_properties(gpu).total_memory
                torch.cuda.set_per_process_memory_fraction(row.cap_gib * GIB / whole, gpu)
    predictor = build(row)
    images = load_images(data, row.images)
    return [measure_way(row, way, predictor, images) for way in row.ways]


def build(row: Row) -> Predictor:
    """The row's model with random weights, built on its device."""
    gpus = [torch.device("cuda", number) for number in range(row.gpus if torch.cuda.is_available() else 0)]
    device = gpus[0] if gpus and row.device == "auto" else torch.device("cpu")
    dtype = default_dtype(device)
    if row.size in SAM2_ALONE:
        sizes = {"variant": SAM2_ALONE[row.size], "image_size": row.image_size}
        model = build_prompted(PromptedSAM2Config(PHRASES[:1], sizes))
        return PromptedPredictor(place(model, device, dtype).eval().requires_grad_(False))
    with tempfile.TemporaryDirectory() as scratch:
        base = write_base(Path(scratch) / "base", row.size)
        sa2va = build_model(
            str(base),
            {"variant": "tiny" if row.size == TINY else "large", "image_size": row.image_size},
            trainable=FROZEN,
            random_weights=True,
            quantise=row.quantise,
            device=device,
            dtype=dtype,
            layer_devices=gpus if row.gpus > 1 else (),
        )
        tokenizer = read_base_folder(base).tokenizer
    sa2va.eval().requires_grad_(False)
    return Sa2VAPredictor(sa2va, processor_for(sa2va.config, tokenizer))


def load_images(data: Path | None, count: int) -> list[Image.Image]:
    """`count` RGB images of 512x512; a folder with fewer, and the eight drawn ones, are repeated."""
    if data is None:
        found = [Image.fromarray(draw_angiogram(512, 0, patient, 0)[0]) for patient in range(min(8, count))]
    else:
        found = [Image.open(path) for path in sorted((data / "images").rglob("*.png"))[:count]]
    images = [image.convert("RGB").resize((512, 512)) for image in found]
    return [images[number % len(images)] for number in range(count)]


def in_batches(predictor: Predictor, images: Images, size: int, phrases: Sequence[str]) -> Iterable[int]:
    """`predict`, batch after batch."""
    for first in range(0, len(images), size):
        some = images[first : first + size]
        predictor.predict(some, [phrases] * len(some))
        yield len(some)


def streamed(predictor: Predictor, images: Images, size: int) -> Iterable[int]:
    """`stream`, which prepares a batch while the model computes the one before."""
    questions = [[question_for(PHRASES[0])]]
    starts = range(0, len(images), size)
    batches = [(images[first : first + size], questions * len(images[first : first + size])) for first in starts]
    for found in predictor.stream(batches):
        yield len(found)


def phrases_apart(predictor: Predictor, images: Images) -> Iterable[int]:
    """Three phrases as three images: nothing of an image is shared between its phrases."""
    for first in range(0, len(images), 8):
        some = [image for image in images[first : first + 8] for _ in PHRASES]
        predictor.predict(some, [[phrase] for _ in range(len(some) // len(PHRASES)) for phrase in PHRASES])
        yield len(some) // len(PHRASES)


def cine(predictor: Predictor, images: Images, mode: str) -> Iterable[int]:
    """The images as frames of one run. The memory's weights are random: its cost is measured, not its masks."""
    if not memory_trained(predictor.grounding):
        pass_as_trained(predictor)
    keyframes = KEYFRAME_INTERVAL if mode == "memory" else None
    found = segment_cine(predictor, images, PHRASES[:1], mode, keyframes, batch=CINE_BATCH)
    while done := len(list(islice(found, CINE_BATCH))):
        yield done


@torch.inference_mode()
def published(predictor: Predictor, images: Images, phrases: Sequence[str]) -> Iterable[int]:
    """The steps of Sa2VA's published `predict_forward`: one image and one question at a time, eager attention, tokens
    decoded one by one, the image encoded again for every [SEG]. Random weights would answer something else, so the
    answer's tokens are given.
    """
    assert isinstance(predictor, Sa2VAPredictor)
    model, processor = predictor.model, predictor.processor
    answer = [*[5] * (ANSWER_TOKENS - 2), model.new_tokens.seg_id, 5]  # 5: any ordinary token
    for image in images:
        for phrase in phrases:
            tiles = predictor.views.tiles(image).to(model.device)
            tile_tokens = model.tile_tokens(model.encode_tiles(tiles))
            question = question_ids(processor.tokens, question_for(phrase), tile_tokens.shape[:2].numel())
            decoded = greedy_decode(model, question, tile_tokens, -1, ANSWER_TOKENS, answer)
            square = predictor.views.square(image).unsqueeze(0).to(model.device, model.dtype)
            image_index = torch.zeros(1, dtype=torch.int64, device=model.device)  # (objects,)
            logits: Tensor = model.grounding.decode(model.grounding.encode(square), decoded.prompts, image_index)
            full = logits_to_image(logits, predictor.views.sam_size, image.height, image.width)
            (full.sigmoid() > predictor.threshold).cpu().numpy()
        yield 1


WAYS: dict[str, Way] = {
    "published": lambda predictor, images: published(predictor, images, PHRASES[:1]),
    "published_3": lambda predictor, images: published(predictor, images, PHRASES),
    **{
        f"batch_{size}": lambda predictor, images, size=size: in_batches(predictor, images, size, PHRASES[:1])
        for size in (1, 4, 8, 16, 32)
    },
    "stream_8": lambda predictor, images: streamed(predictor, images, 8),
    "phrases_3": lambda predictor, images: in_batches(predictor, images, 8, PHRASES),
    "phrases_3_apart": phrases_apart,
    "cine_frames": lambda predictor, images: cine(predictor, images, "frames"),
    "cine_memory_8": lambda predictor, images: cine(predictor, images, "memory"),
}


def measure_way(row: Row, way: str, predictor: Predictor, images: Images) -> dict[str, Any]:
    """Seconds per image (median over batches) and images per second (over all of them), both without the first two
    batches; GiB per GPU.
    """
    gpus = range(row.gpus) if torch.cuda.is_available() and row.device != "cpu" else range(0)
    for gpu in gpus:
        torch.cuda.reset_peak_memory_stats(gpu)
    if row.size not in SAM2_ALONE:
        for part in (predictor.model.vision_model, predictor.model.language_model):
            part.set_attn_implementation("eager" if way.startswith("published") else "sdpa")
    times, counts, started = [], [], time.perf_counter()
    before = started
    for count in WAYS[way](predictor, images):
        now = time.perf_counter()
        times.append(now - before)
        counts.append(count)
        before = now
        if now - started > LONGEST_S:
            break
    steady = slice(min(2, len(times) - 1), None)
    reserved = [torch.cuda.max_memory_reserved(gpu) / GIB for gpu in gpus]
    return {
        **{name: value for name, value in asdict(row).items() if name != "ways"},
        "way": way,
        "gpu": torch.cuda.get_device_name(0) if gpus else "CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "images_per_s": sum(counts[steady]) / sum(times[steady]),
        "s_per_image": median(seconds / count for seconds, count in zip(times[steady], counts[steady])),
        "batches": len(times[steady]),
        "peak_allocated_gib": [torch.cuda.max_memory_allocated(gpu) / GIB for gpu in gpus],
        "peak_reserved_gib": reserved,
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown, one line per row and way."""
    lines = ["| model | way | images/s | s per image | reserved GiB | cap |", "|---|---|---|---|---|---|"]
    for result in results:
        if "error" in result:
            lines.append(f"| {result['name']} | failed: {result['error'][:120]} | | | | {result['cap_gib'] or ''} |")
            continue
        reserved = ", ".join(f"{gib:.2f}" for gib in result["peak_reserved_gib"])
        speed = f"{result['images_per_s']:.2f} | {result['s_per_image']:.4f}"
        lines.append(f"| {result['name']} | {result['way']} | {speed} | {reserved} | {result['cap_gib'] or ''} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
