"""A small dataset folder with drawn vessels, and how a tool is run on it."""

from __future__ import annotations

import importlib.util
import json
import logging
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from tests.fork_server import python
from vesselseg.dataset.manifest import Record, read_split
from vesselseg.dataset.record_masks import record_masks
from vesselseg.run_tool import run_tool as end_with_status

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Drawn:
    """A dataset folder: 4 train, 3 val and 5 test images of 72 x 96, in sub-folders."""

    folder: Path

    def records(self, split: str) -> list[Record]:
        return read_split(self.folder, split)

    def truth(self, record: Record) -> np.ndarray:
        return record_masks(record, 72, 96).astype(bool).max(axis=0, initial=False)

    def image(self, record: Record) -> np.ndarray:
        return np.asarray(Image.open(self.folder / "images" / record.image))

    def resplit(self, **changed: list[str]) -> None:
        path = self.folder / "splits.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def vessel(generator: np.random.Generator) -> list[float]:
    """A winding band as a polygon."""
    x = np.linspace(8, 88, 12)
    y = 36 + 14 * np.sin(x / generator.uniform(8, 20) + generator.uniform(0, 6))
    half = generator.uniform(2.0, 4.0)
    outline = np.concatenate([np.stack([x, y - half], 1), np.stack([x, y + half], 1)[::-1]])
    return [float(value) for value in outline.ravel()]


def picture(mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    values = (
        170 + 20 * np.linspace(0, 1, mask.shape[1])[None] - 70 * cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1)
    )
    return np.clip(values + generator.normal(0, 8, mask.shape), 0, 255).astype(np.uint8)


def run_tool(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A tool as the user runs it, in a process of its own."""
    command = [python(), str(REPOSITORY / "tools" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)


def call_tool(name: str, *arguments: object) -> int:
    """The exit status of a tool run inside this process, which is faster; its output is for capsys."""
    specification = importlib.util.spec_from_file_location(Path(name).stem, REPOSITORY / "tools" / name)
    assert specification is not None and specification.loader is not None
    tool = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tool)
    before, package = sys.argv, logging.getLogger("vesselseg")
    level = package.level
    sys.argv = [name, *map(str, arguments)]
    try:
        end_with_status(tool.main)
    except SystemExit as end:
        return int(end.code or 0)
    finally:  # what a tool says is not for the tests after it
        sys.argv = before
        package.setLevel(level)
