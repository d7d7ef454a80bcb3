"""One labelled image -> one record and its stored image. Runs in worker processes."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from vesselseg.dataset.manifest import Record
from vesselseg.imaging.decode import ImageError, encode_png
from vesselseg.imaging.label_shapes import ImageLabels, LabelFileError, LabelSource, Shape, ShapeError
from vesselseg.imaging.rasterise import encode
from vesselseg.imaging.regions import DEFAULT_FILL, Fill, Region, RunLength
from vesselseg.imaging.shape_regions import Canvas, DrawnShape, shape_regions
from vesselseg.prepare.findings import Finding
from vesselseg.prepare.source_images import ImageFile, SourceImage, find_source_image, load_image_file
from vesselseg.prepare.stated_size import settle_size

OVERLAY_SIDE = 480  # pixels of the longer side of an overlay in the report


@dataclass(frozen=True)
class ImageTask:
    """One image to prepare.

    file: path below the source, used in findings and matched by regular expressions. labels: where its labels are.
    image: the image file. search: whether LabelMe's rules come first (``find_source_image``) and `image` is only a
    candidate. stem: path of the stored image without suffix. allowed_root: folder that must
    contain the image, or None.
    """

    file: str
    labels: LabelSource
    image: ImageFile | None = None
    search: bool = False
    stem: str = ""
    allowed_root: Path | None = None


@dataclass(frozen=True)
class ImageOptions:
    """Options for preparing one image."""

    images: Path  # folder to write to
    text: str  # phrase of all labels that `labels` does not map
    keep_phrases: bool = False  # keep the labels of files that store the phrases of a prediction
    labels: Mapping[str, str | None] | None = None  # label -> phrase, None to leave the label out
    per_shape: bool = False  # each shape (or group_id) is an object of its own
    fill: Fill = DEFAULT_FILL  # of polygons
    line_width: float | None = None  # of lines and points, in stored pixels; None leaves them out
    pixels_only: bool = False  # store no metadata, only pixels

    def phrase(self, label: str, file: ImageLabels) -> str | None:
        """The phrase of a label; None leaves it out."""
        if self.labels is not None:
            return self.labels.get(label)
        return " ".join(label.split()) if self.keeps_phrases(file) else self.text

    def phrases_without_shapes(self, file: ImageLabels) -> tuple[str, ...]:
        """The phrases of an image without shapes, each with an empty mask."""
        return file.phrases if self.keeps_phrases(file) else (self.text,)

    def keeps_phrases(self, file: ImageLabels) -> bool:
        """Whether the labels of the file are phrases."""
        return self.keep_phrases and bool(file.phrases)


@dataclass
class ImageResult:
    """Outcome of preparing one image."""

    file: str  # path below the source
    record: Record | None = None  # None if the image is left out
    size: tuple[int, int] = (0, 0)  # (width, height) of the stored image
    fraction: float = 0.0  # of vessel pixels, 0..1
    overlay_masks: tuple[RunLength, ...] = ()  # per object, its mask at `overlay_size`
    origin: Path | None = None  # the image file, None for imageData or if there is none
    pixel_hash: str = ""  # SHA-256 of size and decoded pixels
    patient: str = ""  # see SourceImage
    findings: list[Finding] = field(default_factory=list)
    used: Counter[str] = field(default_factory=Counter)  # shapes per label
    dropped: Counter[str] = field(default_factory=Counter)  # unusable shapes per label
    ignored: Counter[str] = field(default_factory=Counter)  # shapes per label that the label map leaves out
    unknown: Counter[str] = field(default_factory=Counter)  # shapes per label that the label map lacks
    phrases: dict[str, str] = field(default_factory=dict)  # label -> phrase of the used labels
    readings: tuple[tuple[str, RunLength], ...] = ()  # both readings of a doubtful mask, at `overlay_size`

    def find(self, code: str, reason: str, index: int | None = None) -> None:
        """Add a finding of this file."""
        self.findings.append(Finding(self.file, index, code, reason))


@dataclass
class LabelledObject:
    """One object of an image, with everything drawn of it.

    regions: per observer, "" for the first. mask: (height, width) uint8, 0 or 1, union of the first observer's shapes.
    """

    phrase: str
    mask: np.ndarray
    regions: dict[str, list[Region]] = field(default_factory=dict)

    def add(self, shape: Shape, drawn: DrawnShape) -> None:
        """Add a shape of the object; only the first observer's count for the mask."""
        self.regions.setdefault(shape.observer, []).extend(drawn.regions)
        if not shape.observer:
            self.mask |= drawn.mask


def prepare_image(task: ImageTask, options: ImageOptions) -> ImageResult:
    """Read, check, convert and store one image with its labels; every problem becomes a finding."""
    result = ImageResult(task.file)
    try:
        labels = task.labels.read()
    except LabelFileError as error:
        result.find(error.code, str(error))
        return result
    _count_unknown(labels, options, result)
    _find_other_phrases(labels, options, result)
    try:
        labels, image = settle_size(labels, partial(_load, task))
    except (ImageError, LabelFileError) as error:
        result.find(error.code, str(error))
        return result
    result.origin, result.size, result.patient = image.origin, image.size, image.patient
    for code, reason in labels.notes + image.notes:
        result.find(code, reason)
    objects = _objects(labels, image, options, result)
    if objects is None:
        result.find("no_usable_shape", f"all {len(labels.shapes) + len(labels.invalid)} shapes are left out")
        return result
    _store(task, options, image, objects, labels.observers, result)
    _keep_ignored(labels, image, result)
    return result


def _load(task: ImageTask, labels: ImageLabels) -> SourceImage:
    if task.search:
        return find_source_image(labels, task.labels.path, task.allowed_root, task.image)
    return load_image_file(task.image, labels)


def _count_unknown(labels: ImageLabels, options: ImageOptions, result: ImageResult) -> None:
    if options.labels is not None:
        names = [shape.label for shape in labels.shapes] + [broken.label for broken in labels.invalid if broken.label]
        result.unknown.update(name for name in names if name not in options.labels)


def _find_other_phrases(labels: ImageLabels, options: ImageOptions, result: ImageResult) -> None:
    """List labels that were added by hand to a file whose labels are phrases."""
    if not options.keeps_phrases(labels):
        return
    for label in sorted({shape.label for shape in labels.shapes} - set(labels.phrases)):
        requested = ", ".join(map(repr, labels.phrases))
        result.find("other_phrase", f"label {label!r} is none of the requested phrases ({requested}); kept")


def _objects(
    labels: ImageLabels, image: SourceImage, options: ImageOptions, result: ImageResult
) -> list[LabelledObject] | None:
    """The objects of an image, empty ones if it has no shape; None if no shape is usable."""
    canvas = _canvas(labels, image, options)
    for broken in labels.invalid:
        if not broken.label or options.phrase(broken.label, labels) is not None:
            result.find(broken.code, broken.reason, broken.index)
            result.dropped[broken.label or "(no label)"] += 1
    objects: dict[tuple[str, str], LabelledObject] = {}
    for shape in labels.shapes:
        phrase = options.phrase(shape.label, labels)
        if phrase is None:
            result.ignored[shape.label] += 1
            continue
        result.phrases[shape.label] = phrase
        drawn = _draw(shape, canvas, result)
        if drawn is not None:
            key = phrase, _object_key(shape, options)
            if key not in objects:
                objects[key] = LabelledObject(phrase, np.zeros_like(drawn.mask))
            objects[key].add(shape, drawn)
    if canvas.rescaled and objects and not labels.relative:
        result.find("rescaled", _describe_scale(canvas))
    if not objects:
        empty = np.zeros((canvas.height, canvas.width), np.uint8)
        phrases = options.phrases_without_shapes(labels)
        return None if result.dropped else [LabelledObject(phrase, empty) for phrase in phrases]
    return list(objects.values())


def _canvas(labels: ImageLabels, image: SourceImage, options: ImageOptions) -> Canvas:
    size = (1, 1) if labels.relative else labels.size or image.size
    return Canvas(*image.size, size, options.line_width, options.fill)


def _draw(shape: Shape, canvas: Canvas, result: ImageResult) -> DrawnShape | None:
    """The shape on the stored image; None, and a finding, if it is unusable."""
    try:
        drawn = shape_regions(shape, canvas)
    except ShapeError as error:
        result.find(error.code, str(error), shape.index)
        result.dropped[shape.label] += 1
        return None
    if drawn.clipped:
        result.find("clipped", f"{shape.kind} extends beyond the image; clipped at its border", shape.index)
    if not shape.observer:  # other observers draw the same vessels again
        result.used[shape.label] += 1
    return drawn


def _object_key(shape: Shape, options: ImageOptions) -> str:
    """Shapes with the same phrase and key form one object."""
    if not options.per_shape:
        return ""
    return f"shape {shape.index}" if shape.group_id is None else f"group {shape.group_id}"


def _describe_scale(canvas: Canvas) -> str:
    text = f"labelled at {canvas.label_size[0]}x{canvas.label_size[1]}, image is {canvas.width}x{canvas.height}"
    x, y = canvas.scale
    if abs(x - y) <= 0.01 * max(x, y):
        return f"{text}; coordinates multiplied by {x:.4g}"
    return f"{text}; coordinates multiplied by {x:.4g} in x and {y:.4g} in y: check that the shapes fit the image"


def _store(
    task: ImageTask,
    options: ImageOptions,
    image: SourceImage,
    objects: list[LabelledObject],
    observers: tuple[str, ...],
    result: ImageResult,
) -> None:
    width, height = image.size
    content, suffix = (_pixels_only(image), ".png") if options.pixels_only else (image.content, image.suffix)
    target = options.images / (task.stem + suffix)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    drawn = {name: tuple(tuple(one.regions.get(name, ())) for one in objects) for name in ("", *observers)}
    regions, phrases = drawn.pop(""), tuple(one.phrase for one in objects)
    result.record = Record(task.stem + suffix, regions, phrases, "", image.spacing, drawn, options.fill, image.plane)
    masks = np.stack([one.mask for one in objects])  # (objects, height, width)
    result.fraction = float(masks.any(axis=0).mean())
    small = overlay_size(image.size)
    result.overlay_masks = tuple(encode(cv2.resize(m, small, interpolation=cv2.INTER_NEAREST)) for m in masks)
    digest = hashlib.sha256(f"{width}x{height}".encode())
    digest.update(image.pixels.tobytes())
    result.pixel_hash = digest.hexdigest()


def _keep_ignored(labels: ImageLabels, image: SourceImage, result: ImageResult) -> None:
    """Add the ignored pixels to the record, and keep both readings of a doubtful mask for the report."""
    assert result.record is not None
    if labels.ignored is not None:
        region = encode(_resized(labels.ignored, image.size))
        result.record = replace(result.record, ignore=(region,))
    small = overlay_size(image.size)
    result.readings = tuple((title, encode(_resized(bitmap, small))) for title, bitmap in labels.readings)


def _resized(bitmap: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(bitmap.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)


def overlay_size(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of an image's overlay in the report, with a longer side of OVERLAY_SIDE pixels."""
    scale = OVERLAY_SIDE / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _pixels_only(image: SourceImage) -> bytes:
    """A PNG of the stored pixels, without EXIF, comments or trailing bytes."""
    with Image.open(io.BytesIO(image.content)) as opened:
        return encode_png(opened if opened.mode in ("L", "RGB") else opened.convert("RGB"))
