"""YOLO-seg text: one object per line, its class number and outline in fractions of the image's width and height.

Format: https://docs.ultralytics.com/datasets/segment/
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import yaml

from vesselseg.imaging.label_shapes import (
    ImageLabels,
    LabelFileError,
    Shape,
    ShapeError,
    check_point_count,
    collect_shapes,
    parse_coordinate,
)
from vesselseg.imaging.label_text import decode_text
from vesselseg.imaging.source_files import SourceFiles
from vesselseg.prepare.readers.scan import ImageIndex, ImageMatch, ScanResult, add_tasks, file_stem, select_match

_LINE = re.compile(rb"\s*\d+(\.0*)?(\s+[-+0-9.eEnaif]+){4,}\s*(\n|\r|$)")


@dataclass(frozen=True)
class YoloLabels:
    """The labels in one text file. names: class number -> label."""

    path: Path
    names: dict[int, str] = field(default_factory=dict)

    def read(self) -> ImageLabels:
        """One shape per line; an empty file is an image without vessel."""
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise LabelFileError(f"the file cannot be read: {error.strerror}") from None
        text, notes = decode_text(content) if content.strip() else ("", [])
        lines = [(number, line.split()) for number, line in enumerate(text.splitlines()) if line.strip()]
        shapes, broken = collect_shapes(lines, self._shape, self._label)
        return ImageLabels(shapes, broken, "", None, None, tuple(notes), relative=True)

    def _label(self, words: list[str]) -> str:
        try:
            number = int(float(words[0]))
        except (ValueError, OverflowError):
            return words[0]
        return self.names.get(number, str(number))

    def _shape(self, index: int, words: list[str]) -> Shape:
        try:
            values = [parse_coordinate(float(word), f"number {n + 1}") for n, word in enumerate(words)]
        except ValueError as error:
            if isinstance(error, ShapeError):
                raise
            raise ShapeError("bad_field", "expected a class number and x, y pairs, all numbers") from None
        if len(values) == 5:
            raise ShapeError("bad_field", "five numbers are a box, which is not a mask")
        if values[0] != int(values[0]) or len(values) % 2 == 0:
            raise ShapeError("bad_field", f"expected a class number and x, y pairs, found {len(values)} numbers")
        if max(map(abs, values[1:]), default=0) > 10:
            raise ShapeError("bad_field", f"expected fractions of the image, 0 to 1, found {max(values[1:]):g}")
        points = np.array(values[1:], dtype=np.float64).reshape(-1, 2)
        check_point_count("polygon", points)
        return Shape(index, self._label(words), "polygon", points)


def looks_like_yolo(start: bytes) -> bool:
    """Whether the first bytes of a text file are a class number followed by at least four numbers."""
    return _LINE.match(start.removeprefix(b"\xef\xbb\xbf")) is not None


def scan_yolo(files: SourceFiles, texts: list[str], index: ImageIndex, first_frame: int | None) -> ScanResult:
    """Match each text file with the image of the same name next to it, or in images/ if the text is in labels/."""
    found = ScanResult()
    names = _read_names(files, found)
    labelled: list[tuple[str, ImageMatch, YoloLabels]] = []
    for name in texts:
        near = "/".join("images" if part == "labels" else part for part in PurePosixPath(name).parts)
        match = select_match(found, name, index.by_stem(file_stem(name), near), f"{PurePosixPath(name).stem}.*", index)
        if match is not None:
            labelled.append((name, match, YoloLabels(files.root / name, names)))
    add_tasks(found, files, labelled, first_frame)
    return found


def _read_names(files: SourceFiles, found: ScanResult) -> dict[int, str]:
    """Class names from the dataset's YAML, a list or a mapping; without it, labels are class numbers."""
    for name in sorted(files.others_with(".yaml", ".yml"), key=lambda path: (path.count("/"), path)):
        try:
            content = yaml.safe_load((files.root / name).read_bytes())
        except (yaml.YAMLError, OSError, UnicodeDecodeError):
            found.skip(name, "bad_labels", "not readable as YAML; labels are class numbers")
            continue
        names = content.get("names") if isinstance(content, dict) else None
        if isinstance(names, list):
            return {number: str(label) for number, label in enumerate(names)}
        if isinstance(names, dict):
            return {int(number): str(label) for number, label in names.items() if str(number).isdigit()}
    return {}
