"""Time and peak memory of tools/eval.py over given predictions: every metric, report and panels included.

usage: python benchmarks/evaluate.py --folder /tmp/evaluate --out docs/results/evaluation/speed.json

Drawn angiograms of 512x512 with labels, and for each a simulated prediction: soft edges, gaps, false branches, shifted
by a pixel. They are scored as masks and as probabilities (16-bit PNG), for each number of images, each time by a new
process of tools/eval.py. The folder is created and deleted afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vesselseg.dataset.manifest import Record, write_manifest
from vesselseg.dataset.record_masks import record_masks
from vesselseg.evaluation.metrics import METRICS
from vesselseg.machine import available_cores
from vesselseg.synthetic.angiograms import angiogram_labels, draw_angiogram

REPOSITORY = Path(__file__).resolve().parents[1]
SIDE, FRAMES = 512, 3
KINDS = ("masks", "probabilities")


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, score in new processes, delete. argv: of the command line, the default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[50, 300], help="numbers of images, in rising order")
    parser.add_argument("--cores", type=int, default=2, help="CPU cores to use (default: %(default)s)")
    parser.add_argument("--folder", type=Path, required=True, help="folder to create; must not exist")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args(argv)
    arguments.folder.mkdir(parents=True)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    rows = []
    try:
        data = draw(arguments.folder, max(arguments.images))
        for count in arguments.images:
            choose(data, count)
            for kind in KINDS:
                rows.append({"predictions": kind, "images": count, **measure(data, arguments.folder, kind, count)})
                print(json.dumps(rows[-1]), flush=True)
    finally:
        shutil.rmtree(arguments.folder)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        content = {"size": SIDE, "metrics": len(METRICS), "machine": machine(), "rows": rows}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def draw(folder: Path, count: int) -> Path:
    """Write a dataset folder of count images, FRAMES per patient, and the folders ``masks`` and ``probabilities``."""
    data = folder / "data"
    for path in (data / "images", *(folder / kind for kind in KINDS)):
        path.mkdir(parents=True)
    records = []
    for number in range(count):
        image, tubes = draw_angiogram(SIDE, 0, *divmod(number, FRAMES))
        name = f"{number:04d}.png"
        shapes = angiogram_labels(name, tubes, SIDE)["shapes"]
        outlines = tuple(tuple(float(v) for point in shape["points"] for v in point) for shape in shapes)
        records.append(Record(name, (outlines,), ("vessel",), group=f"patient {number // FRAMES}"))
        Image.fromarray(image).save(data / "images" / name)
        values = predict(record_masks(records[-1], SIDE, SIDE)[0], np.random.default_rng(number))
        Image.fromarray(np.round(values * 65535).astype(np.uint16)).save(folder / "probabilities" / name)
        Image.fromarray((values > 0.5).astype(np.uint8) * 255).save(folder / "masks" / name)
    write_manifest(data, records)
    return data


def predict(truth: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.float32]:
    """Probabilities (SIDE, SIDE) float32 in 0..1 of a simulated model; truth: (SIDE, SIDE) 0 and 1."""
    values = np.roll(truth, generator.integers(-1, 2, size=2), axis=(0, 1)).astype(np.float32)
    for x, y in generator.integers(0, SIDE, size=(12, 2)).tolist():
        cv2.circle(values, (x, y), int(generator.integers(4, 14)), 0.0, -1)
    for start, end in generator.integers(0, SIDE, size=(3, 2, 2)).tolist():
        cv2.line(values, start, end, 0.9, int(generator.integers(2, 6)))
    noise = cv2.GaussianBlur(generator.normal(0, 1, truth.shape).astype(np.float32), (0, 0), 3)
    return np.clip(0.03 + 0.94 * cv2.GaussianBlur(values, (0, 0), 1.5) + 0.4 * noise, 0, 1)


def choose(data: Path, count: int) -> None:
    """Write splits.json: the first count images are the test split."""
    names = sorted(path.name for path in (data / "images").iterdir())
    splits = {"train": names[count:], "val": [], "test": names[:count]}
    (data / "splits.json").write_text(json.dumps(splits), encoding="utf-8")


def measure(data: Path, folder: Path, kind: str, count: int) -> dict[str, Any]:
    """Seconds (wall, CPU), peak memory and report size of one run of tools/eval.py, MiB."""
    out = folder / f"{kind}_{count}"
    command = [sys.executable, REPOSITORY / "tools/eval.py", folder / kind, "--data", data, "--out", out]
    started = time.perf_counter()
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen([str(word) for word in command], stdout=log, stderr=log, cwd=REPOSITORY)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit((folder / "log.txt").read_text(encoding="utf-8"))
    return {
        "wall_s": round(time.perf_counter() - started, 1),
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "peak_rss_mib": round(used.ru_maxrss / 1024),
        "report_mib": round(sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 2**20, 1),
    }


def machine() -> dict[str, Any]:
    """Cores, processor and Python version."""
    return {"cores": available_cores(), "processor": processor(), "python": platform.python_version()}


def processor() -> str:
    """The processor's name, or the architecture where the system does not report it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
