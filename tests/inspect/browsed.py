"""A dataset folder that covers everything the page of vesselseg browse can show."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from vesselseg.dataset.manifest import Record, write_manifest

WIDTH, HEIGHT = 96, 80
VESSEL = [10.0, 10.0, 70.0, 10.0, 70.0, 18.0, 10.0, 18.0]  # 61 x 9 pixels
WIRE = [40.0, 5.0, 44.0, 5.0, 44.0, 60.0, 40.0, 60.0]  # 5 x 56
SHIFTED = [10.0, 12.0, 70.0, 12.0, 70.0, 20.0, 10.0, 20.0]  # the vessel as drawn by another observer
ODD = 'clip/<b>&"50% #1.png'  # special characters of markup, URLs and shells
BROKEN, MISSING, OUTSIDE, WIDE, DEEP = "broken.png", "missing.png", "outside.png", "wide.png", "deep.png"
FILLERS = 40


def write_browsed(folder: Path) -> Path:
    """48 images in all splits: two phrases, two observers, none, several tiles, 16 bits, odd names, unreadable ones."""
    records = [
        Record("first.png", ((VESSEL,), (WIRE,)), ("blood vessel", "guide wire"), "p0", (0.2, 0.25)),
        Record("seen_twice.png", ((VESSEL,),), ("blood vessel",), "p0", None, {"2": ((SHIFTED,),)}),
        Record(ODD, ((VESSEL,),), ("blood vessel",), "p1"),
        Record("nothing.png", (), (), "p1"),
        Record(WIDE, ((VESSEL,),), ("blood vessel",), "p2"),
        Record(DEEP, ((WIRE,),), ("guide wire",), "p2"),
        *(Record(name, ((VESSEL,),), ("blood vessel",), "p3") for name in (BROKEN, MISSING, OUTSIDE)),
        *(Record(f"more_{n:02}.png", ((_bar(n),),), ("blood vessel",), f"p{4 + n // 4}") for n in range(FILLERS)),
    ]
    images = folder / "images"
    for number, record in enumerate(records):
        _picture(images / record.image, number)
    content = (images / BROKEN).read_bytes()
    (images / BROKEN).write_bytes(content[: len(content) // 2])
    (images / MISSING).unlink()
    (images / OUTSIDE).replace(folder.parent / "private.png")
    (images / OUTSIDE).symlink_to(folder.parent / "private.png")
    write_manifest(folder, records)
    names = [record.image for record in records]
    splits = {"train": names[:24], "val": names[24:36], "test": names[36:-1]}  # the last image is in none
    (folder / "splits.json").write_text(json.dumps(splits))
    _reports(folder)
    return folder


def _bar(number: int) -> list[float]:
    """A vessel that gets thicker from image to image."""
    return [8.0, 8.0, 80.0, 8.0, 80.0, 10.0 + number, 8.0, 10.0 + number]


def _picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    width = 400 if path.name == WIDE else WIDTH
    values = np.random.default_rng(number).integers(60, 200, (HEIGHT // 8, width // 8), dtype=np.uint8)
    grey = np.array(Image.fromarray(values).resize((width, HEIGHT), Image.Resampling.BICUBIC))
    Image.fromarray(grey.astype(np.uint16) * 37 + 900 if path.name == DEEP else grey).save(path)


def _reports(folder: Path) -> None:
    found = [
        {"file": "source/first.json", "index": 3, "code": "too_few_points", "effect": "shape left out",
         "reason": "a polygon needs 3 distinct points, found 2 (of 2 written)"},
        {"file": "source/deep.json", "index": None, "code": "sixteen_bit", "effect": "changed", "reason": "scaled"},
        {"file": "source/lost.json", "index": None, "code": "no_image", "effect": "file left out",
         "reason": "no picture beside it"},
    ]  # fmt: skip
    (folder / "report.json").write_text(json.dumps({"source": "source", "vesselseg": "0.1.0", "findings": found}))
