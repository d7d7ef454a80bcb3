"""CPU time of SAM2 models with a fixed phrase, as vesselseg distill writes them: real sizes, random weights.

usage: python benchmarks/small_models.py DIR --variant tiny --size 512 --threads 2

Prints seconds per image for torch, ONNX in float32 and ONNX in 8 bits: one image at a time, from image to mask.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vesselseg.distill.graphs import ONNX, ONNX_INT8, OnnxPredictor
from vesselseg.distill.student_folder import write_graphs, write_model
from vesselseg.inference.prompted_folder import load_prompted
from vesselseg.inference.prompted_predictor import PromptedPredictor
from vesselseg.models.prompted_config import PromptedSAM2Config
from vesselseg.models.prompted_sam2 import build_prompted
from vesselseg.models.sam2_grounding import TRUNKS
from vesselseg.run_tool import run_tool

PHRASE = "blood vessel"


def write_small_model(folder: Path, variant: str, size: int) -> Path:
    """Write a model folder with its ONNX graphs and return it. size: side of SAM2's view in pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    sizes = {"variant": variant, "version": "2.1", "image_size": size}
    model = build_prompted(PromptedSAM2Config(phrases=[PHRASE], grounding_config=sizes, head_width=64)).eval()
    write_model(model, folder)
    write_graphs(model, folder)
    return folder


def seconds_per_image(predictor: PromptedPredictor, rounds: int) -> float:
    """Median over rounds, after one that is not counted, for an image of 512 x 512."""
    pixels = np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8)
    taken = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        predictor.predict([Image.fromarray(pixels)], [[PHRASE]])
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[1:]))


def main(argv: Sequence[str] | None = None) -> None:
    """Write, measure, print. argv: of the command line, the default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to write the model to")
    parser.add_argument("--variant", choices=TRUNKS, default="tiny")
    parser.add_argument("--size", type=int, default=512, help="side of SAM2's view in pixels (default: 512)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--rounds", type=int, default=5, help="timed images (default: 5)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    folder = write_small_model(arguments.folder, arguments.variant, arguments.size)
    plain = load_prompted(folder, "cpu", torch.float32)
    forms = {
        "torch": plain,
        ONNX: OnnxPredictor(plain.model, folder / ONNX, arguments.threads),
        ONNX_INT8: OnnxPredictor(plain.model, folder / ONNX_INT8, arguments.threads),
    }
    found = {name: round(seconds_per_image(predictor, arguments.rounds), 3) for name, predictor in forms.items()}
    print(json.dumps({"variant": arguments.variant, "size": arguments.size, "seconds_per_image": found}))


if __name__ == "__main__":
    run_tool(main)
