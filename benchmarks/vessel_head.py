"""The vessel head alone: time and memory of its forward and backward pass, eager and compiled, kept and recomputed.

usage: python benchmarks/vessel_head.py --out DIR [--rows NAME ...] [--images 16] [--side 512]

What benchmarks/train_step.py measures with everything around it. Random inputs of the shapes that an 8B training on
SAM2-L has (view 1024, one object per image), bf16 under autocast as in training. Writes vessel_head.json and prints a
line per row.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vesselseg.models.vessel_head import SAM2_CHANNELS, SAM2_STRIDES, TOKEN_DIM, VesselHead
from vesselseg.models.vessel_head_options import read_options
from vesselseg.run_tool import run_tool

FILE = "vessel_head.json"
# nnU-Net's U-Net as the head's pyramid.
UNET = {
    "channels": [32, 64, 128, 256, 320, 320, 320, 320],
    "object_channels": [16, 24, 32, 48],
    "decoder_depth": 2,
    "residual": False,
    "norm": "instance",
}
ROWS: dict[str, dict[str, Any]] = {
    f"{name}, {'all kept' if at_once is None else f'{at_once} at a time'}{', compiled' if compiled else ''}": {
        **options,
        "at_once": at_once,
        "compile": compiled,
    }
    for name, options in (("default", {}), ("U-Net of eight levels", UNET))
    for compiled in (False, True)
    for at_once in (2, 4, 8, None)
}


def inputs(images: int, side: int, view: int, device: str) -> list[Any]:
    """What `VesselHead.forward` takes."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, torch.bfloat16)

    features = [
        drawn(images, wide, view // stride, view // stride) for wide, stride in zip(SAM2_CHANNELS, SAM2_STRIDES)
    ]
    pixels = torch.randint(0, 255, (images, 3, view, view), dtype=torch.uint8, generator=generator).to(device)
    objects = torch.arange(images, device=device)
    tokens = drawn(images, TOKEN_DIM).requires_grad_()
    return [drawn(images, view // 4, view // 4), features, tokens, pixels, objects, (1,) * images]


def measure(options: dict[str, Any], images: int, side: int, rounds: int, device: str) -> dict[str, Any]:
    """Milliseconds per image and peak GiB of one row; the first two passes, which compile, are timed apart."""
    torch.manual_seed(0)
    view = 2 * side
    head = VesselHead(read_options({**options, "side": side}), view).to(device, torch.bfloat16).train()
    given, gpu = inputs(images, side, view, device), device == "cuda"

    def step() -> None:
        head(*given).float().square().mean().backward()
        head.zero_grad(set_to_none=True)

    started = time.perf_counter()
    if gpu:
        step()
        step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    first, held = time.perf_counter() - started, torch.cuda.memory_allocated() if gpu else 0
    started = time.perf_counter()
    for _ in range(rounds):
        step()
    if gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() - held if gpu else None
    return {
        "ms_per_image": round(1000 * seconds / rounds / images, 3),
        "peak_gib": None if peak is None else round(peak / 2**30, 3),
        "first_two_s": round(first, 1),
        "parameters_m": round(sum(one.numel() for one in head.parameters()) / 1e6, 2),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure the rows one after the other; a row that fails is named and the others run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of vessel_head.json")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help="default: all")
    parser.add_argument("--images", type=int, default=16, help="of a step (default: %(default)s)")
    parser.add_argument("--side", type=int, default=512, help="of the head; the view's is twice that")
    parser.add_argument("--rounds", type=int, default=10, help="timed steps (default: %(default)s)")
    args = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = []
    for name in args.rows:
        try:
            result = measure(ROWS[name], args.images, args.side, args.rounds, device)
        except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
            result = {"error": f"{type(error).__name__}: {error}"[:500]}
        found.append({"name": name, **result})
        print(json.dumps(found[-1]), flush=True)
        if device == "cuda":
            torch.cuda.empty_cache()
    args.out.mkdir(parents=True, exist_ok=True)
    about = {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "torch": torch.__version__}
    content = {**about, "images": args.images, "side": args.side, "rows": found}
    (args.out / FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_tool(main)
