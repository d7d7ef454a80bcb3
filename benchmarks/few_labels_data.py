"""ARCADE as a small dataset folder, and its nested subsets of labelled images.

usage: python benchmarks/few_labels_data.py --source ../shared/data/arcade --out data/arcade [--quality 80]

SOURCE holds arcade_syntax_train.tar.gz and arcade_syntax_val.tar.gz, or folders of these names. `vesselseg prepare`
makes the dataset folder, with the fill that papers score with unless --fill names another one. ARCADE's training images
are the training split, its validation images the test split. Then images are stored as WebP, 28 MB at quality 80, and
polygons in hundredths of a pixel.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.runs import REPOSITORY
from vesselseg.dataset.manifest import fingerprint, image_path, read_manifest, read_splits, write_manifest
from vesselseg.errors import UserError
from vesselseg.imaging.regions import FILLS, Region
from vesselseg.machine import available_cores
from vesselseg.prepare.subsets import write_subset
from vesselseg.run_tool import run_tool

PARTS = ("arcade_syntax_train", "arcade_syntax_val")
# The same picture twice in ARCADE's training images, by file number: first, copy.
COPIES = {478: 887, 20: 214, 337: 972, 168: 793, 612: 501}
STREAM = 2024  # first part of the seed of a permutation
LEAST_HELD_OUT, HELD_OUT = 4, 0.1


def main() -> None:
    """Prepare, then shrink."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder of both parts")
    parser.add_argument("--out", type=Path, required=True, help="dataset folder to write")
    parser.add_argument("--quality", type=int, default=80, help="of WebP, 1 to 100 (default: %(default)s)")
    parser.add_argument("--fill", choices=FILLS, default="coco", help="of the polygons (default: %(default)s)")
    args, further = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as scratch:
        for part in PARTS:
            unpack(args.source, part, Path(scratch))
        command = [sys.executable, "-m", "vesselseg", "prepare", scratch, "--out", str(args.out), "--split", "1,0,0"]
        command += ["--text", "blood vessel", "--test-regex", f"{PARTS[1]}/", "--fill", args.fill, *further]
        subprocess.run(command, check=True, env=environment())
    shrink(args.out, args.quality)


def environment() -> dict[str, str]:
    """This process's variables, with this repository's package first."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}


def unpack(source: Path, part: str, out: Path) -> None:
    """One part, from its archive or its folder."""
    if (source / part).is_dir():
        shutil.copytree(source / part, out / part)
        return
    archive = source / f"{part}.tar.gz"
    if not archive.is_file():
        raise UserError(f"{source}: neither {archive.name} nor a folder {part}")
    with tarfile.open(archive) as file:
        file.extractall(out, filter="data")


def shrink(data: Path, quality: int) -> None:
    """Store the images of a dataset folder as WebP, and its polygons in hundredths of a pixel."""
    records, splits = read_manifest(data), read_splits(data)
    with ProcessPoolExecutor(available_cores()) as pool:
        list(pool.map(partial(recode, quality=quality), [image_path(data, one) for one in records], chunksize=16))
    write_manifest(data, [replace(one, image=renamed(one.image), regions=rounded(one.regions)) for one in records])
    content = {name: [renamed(image) for image in images] for name, images in splits.items()}
    (data / "splits.json").write_text(json.dumps(content), encoding="utf-8")
    report = json.loads((data / "report.json").read_text(encoding="utf-8"))
    report |= {"fingerprint": fingerprint(data)}
    report["fractions"] = {renamed(image): fraction for image, fraction in report["fractions"].items()}
    (data / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")


def renamed(image: str) -> str:
    """a/b.png -> a/b.webp."""
    return PurePosixPath(image).with_suffix(".webp").as_posix()


def rounded(regions: tuple[tuple[Region, ...], ...]) -> tuple[tuple[Region, ...], ...]:
    """Coordinates with two decimals; run-length codes as they are."""
    return tuple(
        tuple(one if isinstance(one, dict) else [round(value, 2) for value in one] for one in of_object)
        for of_object in regions
    )


def recode(path: Path, quality: int) -> None:
    """Replace an image by a WebP file next to it; grey ones stay grey."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise UserError(f"{path} cannot be read")
    cv2.imwrite(str(path.with_suffix(".webp")), image, [cv2.IMWRITE_WEBP_QUALITY, quality])
    if path.suffix != ".webp":
        path.unlink()


def file_number(image: str) -> int:
    """The number in a file's name: a/b12.png -> 12."""
    found = re.search(r"(\d+)\D*$", Path(image).stem)
    if found is None:
        raise UserError(f"{image}: expected a number in the name, by which images are ordered")
    return int(found[1])


def subset(images: Sequence[str], labels: int, seed: int) -> tuple[list[str], list[str]]:
    """(training, held out) images: one permutation per seed, of which the first `labels` are labelled.

    The last tenth of these, and at least 4, choose threshold and checkpoint. Subsets of one seed are nested in `labels`
    up to the share that is held out. A copy of a picture is left out; with all labels it is where the first one is.
    """
    by_number = {file_number(image): image for image in images}
    copies = {
        by_number[first]: by_number[second] for first, second in COPIES.items() if {first, second} <= by_number.keys()
    }
    different = sorted(set(images) - set(copies.values()), key=lambda image: (file_number(image), image))
    order = np.random.default_rng((STREAM, seed)).permutation(len(different)).tolist()
    own = [different[index] for index in order[:labels]]
    held_out = max(LEAST_HELD_OUT, round(HELD_OUT * len(own)))
    if labels > len(images) or len(own) <= held_out:
        raise UserError(f"{labels} labels of {len(images)} images: expected {LEAST_HELD_OUT + 1} to {len(images)}")
    training, choosing = own[:-held_out], own[-held_out:]
    if len(own) == len(different):
        for part in (training, choosing):
            part += [copies[image] for image in part if image in copies]
    return training, choosing


def write_labels(data: Path, labels: int, seed: int, folder: Path) -> int:
    """A dataset folder in which the images of `subset` are labelled; returns the number of training images."""
    training, choosing = subset(read_splits(data)["train"], labels, seed)
    shutil.rmtree(folder, ignore_errors=True)
    write_subset(data, {"train": training, "val": choosing}, folder)
    return len(training)


if __name__ == "__main__":
    run_tool(main)
