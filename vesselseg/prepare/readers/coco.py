"""COCO JSON: polygons and run-length codes, compressed or not; ``iscrowd`` is ignored.

Format: https://cocodataset.org/#format-data
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vesselseg.imaging.label_shapes import (
    MAX_PIXELS,
    MAX_SIDE,
    ImageLabels,
    LabelFileError,
    Shape,
    ShapeError,
    check_point_count,
    collect_shapes,
    full_image_mask,
    parse_coordinate,
)
from vesselseg.imaging.label_text import decode_text, parse_json
from vesselseg.imaging.notes import Note
from vesselseg.imaging.source_files import SourceFiles
from vesselseg.prepare.readers.ids import Ids, is_id
from vesselseg.prepare.readers.scan import ImageIndex, ScanResult, scan_listed_images


@dataclass(frozen=True)
class CocoLabels:
    """The annotations of one image. path: the JSON file. annotations: (name of the category, annotation) pairs."""

    path: Path
    size: tuple[int, int] | None
    annotations: tuple[tuple[str, Any], ...]
    notes: tuple[Note, ...] = ()

    def read(self) -> ImageLabels:
        """The shapes; parts of an annotation share a group_id, and index counts the image's annotations."""
        parts = [(index, part) for index, entry in enumerate(self.annotations) for part in _parts(*entry)]
        shapes, broken = collect_shapes(parts, self._shape, lambda part: part[0])
        return ImageLabels(shapes, broken, "", None, self.size, self.notes)

    def _shape(self, index: int, part: tuple[str, Any]) -> Shape:
        label, content = part
        if isinstance(content, ShapeError):
            raise content
        if isinstance(content, dict):
            return full_image_mask(index, label, _bitmap(content, self.size))
        values = [parse_coordinate(value, f"segmentation, value {n}") for n, value in enumerate(content)]
        if len(values) % 2:
            raise ShapeError("bad_field", f"segmentation: {len(values)} numbers, which are not x, y pairs")
        points = np.array(values, dtype=np.float64).reshape(-1, 2)
        check_point_count("polygon", points)
        return Shape(index, label, "polygon", points, f"annotation {index}")


def scan_coco(files: SourceFiles, jsons: list[str], index: ImageIndex, first_frame: int | None) -> ScanResult:
    """All images that the JSON files list; an image without annotations has no vessel."""
    return scan_listed_images(files, jsons, _read, index, first_frame)


def _read(path: Path) -> list[tuple[str, CocoLabels]]:
    """(file_name, its annotations) of each image of a COCO file; raises LabelFileError."""
    try:
        text, notes = decode_text(path.read_bytes())
    except OSError as error:
        raise LabelFileError(f"the file cannot be read: {error.strerror}") from None
    content = parse_json(text)
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "annotations")):
        raise LabelFileError('not a COCO file: expected an object with the lists "images" and "annotations"')
    categories = content.get("categories")
    named = [c for c in categories if _has_id(c)] if isinstance(categories, list) else []
    names = {category["id"]: str(category.get("name", category["id"])) for category in named}
    images = [entry for entry in content["images"] if _has_id(entry) and isinstance(entry.get("file_name"), str)]
    image_ids, category_ids = Ids(entry["id"] for entry in images), Ids(names)
    of_image: dict[Any, list[tuple[str, Any]]] = defaultdict(list)
    of_type: dict[Any, Note] = {}
    for entry in content["annotations"]:
        if isinstance(entry, dict) and is_id(entry.get("image_id")):
            category = entry.get("category_id")
            known = category_ids.find(category) if is_id(category) else None
            label = names.get(known, f"{category:g}" if isinstance(category, float) else str(category))
            image = image_ids.find(entry["image_id"])
            of_image[image].append((label if is_id(category) else "", entry))
            if type(image) is not type(entry["image_id"]):
                of_type[image] = Note("id_type", f"image_id {entry['image_id']!r} is read as the image's id {image!r}")
    _check(content, images, of_image)
    return [
        (
            entry["file_name"],
            CocoLabels(path, _size(entry), tuple(of_image[entry["id"]]), _notes(notes, of_type, entry)),
        )
        for entry in images
    ]


def _notes(notes: list[Note], of_type: dict[Any, Note], image: Any) -> tuple[Note, ...]:
    return (*notes, *([of_type[image["id"]]] if image["id"] in of_type else []))


def _has_id(entry: Any) -> bool:
    return isinstance(entry, dict) and is_id(entry.get("id"))


def _check(content: dict[str, Any], images: list[Any], of_image: dict[Any, list[Any]]) -> None:
    """Raise LabelFileError for inconsistencies that could assign labels to the wrong image."""
    problems = []
    if len(images) < len(content["images"]):
        problems.append(f'{len(content["images"]) - len(images)} image(s) without "id" or "file_name"')
    ids = Counter(entry["id"] for entry in images)
    repeated = [str(number) for number, count in ids.items() if count > 1]
    if repeated:
        problems.append(f"image id(s) used more than once: {', '.join(repeated[:5])}")
    unknown = sum(len(entries) for number, entries in of_image.items() if number not in ids)
    stray = len(content["annotations"]) - sum(map(len, of_image.values()))
    if unknown or stray:
        example = next((f", e.g. image_id {number!r}" for number in of_image if number not in ids), "")
        listed = f"; the images have ids like {images[0]['id']!r}" if images and example else ""
        problems.append(f"{unknown + stray} annotation(s) of images that are not listed{example}{listed}")
    if problems:
        raise LabelFileError("; ".join(problems))


def _size(entry: dict[str, Any]) -> tuple[int, int] | None:
    width, height = entry.get("width"), entry.get("height")
    if not isinstance(width, (int, float)) or not isinstance(height, (int, float)):
        return None
    return (int(width), int(height)) if 1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE else None


def _parts(label: str, entry: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(label, polygon or run-length code or ShapeError) for each part of an annotation."""
    segmentation = entry.get("segmentation")
    if not label:
        yield label, ShapeError("bad_field", f"category_id: expected a number, found {entry.get('category_id')!r}")
    elif isinstance(segmentation, dict):
        yield label, segmentation
    elif not isinstance(segmentation, list) or not segmentation:
        yield label, ShapeError("bad_field", "segmentation: empty or missing; a box alone is not a mask")
    elif all(isinstance(part, list) for part in segmentation):
        yield from ((label, part) for part in segmentation)
    else:
        yield label, segmentation  # a flat polygon, as some tools write it


def _bitmap(code: dict[str, Any], image: tuple[int, int] | None) -> np.ndarray:
    """A run-length code as (height, width) bool."""
    size, counts = code.get("size"), code.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(type(v) is int and v > 0 for v in size):
        raise ShapeError("bad_mask", "segmentation: a run-length code needs size [height, width]")
    height, width = size
    if height * width > MAX_PIXELS or (image is not None and (width, height) != image):
        raise ShapeError("bad_mask", f"segmentation: a code of {width}x{height} for an image of another size")
    if isinstance(counts, str):
        counts = _decompress(counts)
    if not isinstance(counts, list) or not all(type(v) is int and v >= 0 for v in counts):
        raise ShapeError("bad_mask", "segmentation: counts must be a run-length code or a list of numbers")
    if sum(counts) != height * width:
        raise ShapeError("bad_mask", f"segmentation: counts add up to {sum(counts)}, expected {height * width}")
    runs = np.repeat(np.arange(len(counts)) % 2 == 1, counts)  # (height * width,), column by column
    return runs.reshape((height, width), order="F")


def _decompress(text: str) -> list[int] | None:
    """The counts of a compressed code, as in pycocotools' rleFrString; None for an invalid code.

    pycocotools itself silently decodes a part of the mask from a truncated code.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for letter in text:
        number = ord(letter) - 48
        if not 0 <= number < 64 or shift > 60:
            return None
        value |= (number & 31) << shift
        shift += 5
        if number & 32:
            continue
        if number & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    return None if shift else counts
