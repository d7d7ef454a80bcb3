"""The same shapes in every supported label format; each writer creates a source with two images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from tests.labelme_files import polygon
from vesselseg.imaging.rasterise import rasterise

WIDTH, HEIGHT = 40, 30
# image -> its polygons as x, y pairs; the second picture is without any vessel
DRAWN: dict[str, list[list[float]]] = {
    "p1_a": [[4, 6, 14, 6, 14, 16, 4, 16], [10.25, 10.5, 30.5, 12.25, 28, 26.5]],
    "p2_b": [],
}


def picture(path: Path, seed: int = 0, mode: str = "L") -> None:
    """A PNG of 40 x 30 pixels with seeded noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng([seed, *path.stem.encode()]).integers(0, 255, (HEIGHT, WIDTH), dtype=np.uint8)
    Image.fromarray(values).convert(mode).save(path)


def truth(stem: str) -> np.ndarray:
    """(height, width) 0/1: the expected mask for every format."""
    return rasterise([list(points) for points in DRAWN[stem]], HEIGHT, WIDTH)


def pairs(points: list[float]) -> list[list[float]]:
    return np.array(points).reshape(-1, 2).tolist()


def write_labelme(root: Path) -> None:
    for stem, polygons in DRAWN.items():
        picture(root / f"{stem}.png")
        shapes = [polygon(pairs(points)) for points in polygons]
        content = {"shapes": shapes, "imagePath": f"{stem}.png", "imageWidth": WIDTH, "imageHeight": HEIGHT}
        (root / f"{stem}.json").write_text(json.dumps(content))


def write_masks(root: Path) -> None:
    for stem in DRAWN:
        picture(root / "images" / f"{stem}.png")
        (root / "masks").mkdir(exist_ok=True)
        Image.fromarray(truth(stem) * np.uint8(255)).save(root / "masks" / f"{stem}.png")


def coco_content(segmentation: Callable[[str], list[Any]]) -> dict[str, Any]:
    images = [{"id": n, "file_name": f"{s}.png", "width": WIDTH, "height": HEIGHT} for n, s in enumerate(DRAWN)]
    annotations = [
        {
            "id": 10 * n + k,
            "image_id": n,
            "category_id": 3,
            "segmentation": part,
            "iscrowd": int(isinstance(part, dict)),
        }
        for n, stem in enumerate(DRAWN)
        for k, part in enumerate(segmentation(stem))
    ]
    return {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "vessel"}]}


def write_coco(root: Path, segmentation: Callable[[str], list[Any]] | None = None) -> None:
    for stem in DRAWN:
        picture(root / "train2017" / f"{stem}.png")
    content = coco_content(segmentation or (lambda stem: [[points] for points in DRAWN[stem]]))
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))


def run_lengths(mask: np.ndarray, order: str) -> list[int]:
    """Counts of a 0/1 mask, beginning with zeros, column by column ("F") or row by row ("C")."""
    flat = mask.flatten(order=order)  # type: ignore[arg-type]
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]])))
    return np.diff(np.concatenate([[0], edges])).astype(int).tolist()


def write_coco_rle(root: Path) -> None:
    write_coco(root, lambda s: [{"size": [HEIGHT, WIDTH], "counts": run_lengths(truth(s), "F")}] if DRAWN[s] else [])


def write_coco_compressed(root: Path) -> None:
    def compressed(stem: str) -> list[Any]:
        code = coco_mask.encode(np.asfortranarray(truth(stem)))
        return [{"size": [HEIGHT, WIDTH], "counts": code["counts"].decode("ascii")}] if DRAWN[stem] else []

    write_coco(root, compressed)


def write_yolo(root: Path) -> None:
    (root / "labels" / "train").mkdir(parents=True)
    (root / "data.yaml").write_text("path: .\ntrain: images/train\nnames:\n  0: vessel\n")
    for stem, polygons in DRAWN.items():
        picture(root / "images" / "train" / f"{stem}.png")
        lines = [
            "0 " + " ".join(f"{x / WIDTH:.6f} {y / HEIGHT:.6f}" for x, y in pairs(points)) + "\n" for points in polygons
        ]
        (root / "labels" / "train" / f"{stem}.txt").write_text("".join(lines))


def cvat_file(root: Path, shapes: Callable[[str], list[tuple[str, dict[str, Any]]]]) -> None:
    top = ElementTree.Element("annotations")
    ElementTree.SubElement(top, "version").text = "1.1"
    for number, stem in enumerate(DRAWN):
        picture(root / "images" / f"{stem}.png")
        size = {"width": str(WIDTH), "height": str(HEIGHT)}
        image = ElementTree.SubElement(top, "image", {"id": str(number), "name": f"{stem}.png", **size})
        for kind, fields in shapes(stem):
            named = {"label": "vessel", "occluded": "0", "z_order": "0", **{k: str(v) for k, v in fields.items()}}
            ElementTree.SubElement(image, kind, named)
    (root / "annotations.xml").write_bytes(ElementTree.tostring(top, xml_declaration=True, encoding="utf-8"))


def write_cvat(root: Path) -> None:
    def polygons(stem: str) -> list[tuple[str, dict[str, Any]]]:
        return [
            ("polygon", {"points": ";".join(f"{x:.2f},{y:.2f}" for x, y in pairs(points))}) for points in DRAWN[stem]
        ]

    cvat_file(root, polygons)


def write_cvat_masks(root: Path) -> None:
    def masks(stem: str) -> list[tuple[str, dict[str, Any]]]:
        if not DRAWN[stem]:
            return []
        rows, columns = np.nonzero(truth(stem))
        top, left, height, width = rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns) + 1
        part = truth(stem)[top : top + height, left : left + width]
        counts = ", ".join(map(str, run_lengths(part, "C")))
        return [("mask", {"rle": counts, "left": left, "top": top, "width": width, "height": height})]

    cvat_file(root, masks)


WRITERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "LabelMe": ("labelme", write_labelme),
    "mask images": ("masks", write_masks),
    "COCO polygons": ("coco", write_coco),
    "COCO run lengths": ("coco", write_coco_rle),
    "COCO compressed": ("coco", write_coco_compressed),
    "YOLO": ("yolo", write_yolo),
    "CVAT polygons": ("cvat", write_cvat),
    "CVAT masks": ("cvat", write_cvat_masks),
}
