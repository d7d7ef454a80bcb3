"""This machine's GPUs and versions and the speed of its matrix products, as one line of JSON.

usage: python benchmarks/machine.py

The ceiling is a bf16 product of 8192 x 8192 x 8192 on GPU 0, without a GPU a float32 product of 1024 x 1024 x 1024;
median of 15 after 5 that are not counted. Run it as a separate process, so that no CUDA context remains next to the
trainings.
"""

from __future__ import annotations

import json
import platform
import time
from statistics import median
from typing import Any

import torch

REPEATS, WARM_UP = 20, 5


def measure() -> dict[str, Any]:
    """Name, number and memory (bytes) of the GPUs, versions, ceiling in TFLOP/s."""
    on_gpu = torch.cuda.is_available()
    properties = torch.cuda.get_device_properties(0) if on_gpu else None
    return {
        "gpu": properties.name if properties else f"CPU ({platform.machine()})",
        "gpus": torch.cuda.device_count(),
        "gpu_bytes": properties.total_memory if properties else None,
        "torch": torch.__version__,
        "ceiling_tflops": round(ceiling(torch.device("cuda" if on_gpu else "cpu")), 3),
    }


def ceiling(device: torch.device) -> float:
    """TFLOP/s of a large matrix product; 2 n^3 FLOP for n x n matrices."""
    on_gpu = device.type == "cuda"
    side, dtype = (8192, torch.bfloat16) if on_gpu else (1024, torch.float32)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        torch.mm(left, right)
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / median(seconds[WARM_UP:]) / 1e12


if __name__ == "__main__":
    print(json.dumps(measure()))
