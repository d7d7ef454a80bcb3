"""One labelled image -> one record and its stored image. Runs in worker processes; knows of no other file."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from PIL import Image

from vesselseg.dataset.manifest import Record
from vesselseg.imaging.decode import ImageError, encode_png
from vesselseg.imaging.label_shapes import ImageLabels, LabelFileError, LabelSource, Shape, ShapeError
from vesselseg.imaging.rasterise import rasterise
from vesselseg.imaging.regions import Region
from vesselseg.imaging.shape_regions import Canvas, shape_regions
from vesselseg.prepare.findings import Finding
from vesselseg.prepare.source_images import ImageFile, SourceImage, find_source_image, load_image_file


@dataclass(frozen=True)
class ImageTask:
    """One image to prepare.

    file: path below the source that findings and regular expressions go by; labels: where its labels stand.
    picture: the image. search: it is only what is taken when none is found by LabelMe's rules (``find_source_image``).
    stem: path of the stored image without its ending.
    """

    file: str
    labels: LabelSource
    picture: ImageFile | None = None
    search: bool = False
    stem: str = ""


@dataclass(frozen=True)
class ImageOptions:
    """What one file needs to know.

    images: folder to store into; within: folder that images must lie in, or None. bare: store pixels and nothing else.
    text: phrase of all labels that `labels` does not map. own_phrases: files that tell their phrases keep them.
    """

    images: Path
    text: str
    own_phrases: bool = False
    labels: Mapping[str, str | None] | None = None
    per_shape: bool = False
    line_width: float | None = None
    within: Path | None = None
    bare: bool = False

    def phrase(self, label: str, file: ImageLabels) -> str | None:
        """What a label of a file is called in the dataset; None leaves it out."""
        if self.labels is not None:
            return self.labels.get(label)
        return " ".join(label.split()) if self.keeps_phrases(file) else self.text

    def phrases_without_shapes(self, file: ImageLabels) -> tuple[str, ...]:
        """What a picture is said to show nothing of."""
        return file.phrases if self.keeps_phrases(file) else (self.text,)

    def keeps_phrases(self, file: ImageLabels) -> bool:
        """Whether the file's labels are its phrases."""
        return self.own_phrases and bool(file.phrases)


@dataclass
class ImageResult:
    """What became of one file.

    record: None if the file is left out. size: (width, height) stored. fraction: share of vessel pixels, 0..1.
    origin: image file used, None if imageData or none. picture: hash of the decoded pixels. patient: see SourceImage.
    used, dropped, ignored: shapes per label; ignored ones are left out by the label map. phrases: of the used labels.
    unknown: shapes per label that the label map does not name.
    """

    file: str
    record: Record | None = None
    size: tuple[int, int] = (0, 0)
    fraction: float = 0.0
    origin: Path | None = None
    picture: str = ""
    patient: str = ""
    findings: list[Finding] = field(default_factory=list)
    used: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    phrases: dict[str, str] = field(default_factory=dict)

    def find(self, code: str, reason: str, index: int | None = None) -> None:
        """Add a finding of this file."""
        self.findings.append(Finding(self.file, index, code, reason))


@dataclass
class LabelledObject:
    """phrase: what it is called; regions: per observer ("" for the first), what was drawn of it."""

    phrase: str
    regions: dict[str, list[Region]] = field(default_factory=dict)


def prepare_image(task: ImageTask, options: ImageOptions) -> ImageResult:
    """Read, check, convert and store one image with its labels; every trouble with its content becomes a finding."""
    result = ImageResult(task.file)
    try:
        labels = task.labels.read()
    except LabelFileError as error:
        result.find(error.code, str(error))
        return result
    _count_unknown(labels, options, result)
    _find_other_phrases(labels, options, result)
    try:
        if task.search:
            image = find_source_image(labels, task.labels.path, options.within, task.picture)
        else:
            image = load_image_file(task.picture, labels)
    except ImageError as error:
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
    return result


def _count_unknown(labels: ImageLabels, options: ImageOptions, result: ImageResult) -> None:
    if options.labels is not None:
        names = [shape.label for shape in labels.shapes] + [broken.label for broken in labels.invalid if broken.label]
        result.unknown.update(name for name in names if name not in options.labels)


def _find_other_phrases(labels: ImageLabels, options: ImageOptions, result: ImageResult) -> None:
    """A label that was typed by hand, in a file whose labels are phrases."""
    if not options.keeps_phrases(labels):
        return
    for label in sorted({shape.label for shape in labels.shapes} - set(labels.phrases)):
        asked = ", ".join(map(repr, labels.phrases))
        result.find("other_phrase", f"label {label!r} is none of what was asked for ({asked}); a phrase of its own")


def _objects(
    labels: ImageLabels, image: SourceImage, options: ImageOptions, result: ImageResult
) -> list[LabelledObject] | None:
    """One empty object for a picture without any shape; None if nothing is usable."""
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
        regions = _regions(shape, canvas, result)
        if regions:
            drawn = objects.setdefault((phrase, _object_key(shape, options)), LabelledObject(phrase))
            drawn.regions.setdefault(shape.observer, []).extend(regions)
    if canvas.rescaled and objects and not labels.relative:
        result.find("rescaled", _describe_scale(canvas))
    if not objects:
        return None if result.dropped else [LabelledObject(phrase) for phrase in options.phrases_without_shapes(labels)]
    return list(objects.values())


def _canvas(labels: ImageLabels, image: SourceImage, options: ImageOptions) -> Canvas:
    size = (1, 1) if labels.relative else labels.size or image.size
    return Canvas(*image.size, size, options.line_width)


def _regions(shape: Shape, canvas: Canvas, result: ImageResult) -> list[Region]:
    try:
        regions, cut = shape_regions(shape, canvas)
    except ShapeError as error:
        result.find(error.code, str(error), shape.index)
        result.dropped[shape.label] += 1
        return []
    if cut:
        result.find("clipped", f"{shape.kind} reaches over the border of the image; cut off there", shape.index)
    if not shape.observer:  # what others drew of it again is counted once
        result.used[shape.label] += 1
    return regions


def _object_key(shape: Shape, options: ImageOptions) -> str:
    """Shapes of one phrase with the same key are one object."""
    if not options.per_shape:
        return ""
    return f"shape {shape.index}" if shape.group_id is None else f"group {shape.group_id}"


def _describe_scale(canvas: Canvas) -> str:
    text = f"labelled at {canvas.label_size[0]}x{canvas.label_size[1]}, image is {canvas.width}x{canvas.height}"
    x, y = canvas.scale
    if abs(x - y) <= 0.01 * max(x, y):
        return f"{text}; coordinates multiplied by {x:.4g}"
    return f"{text}; coordinates multiplied by {x:.4g} in x and {y:.4g} in y: check that the shapes fit the picture"


def _store(
    task: ImageTask,
    options: ImageOptions,
    image: SourceImage,
    objects: list[LabelledObject],
    observers: tuple[str, ...],
    result: ImageResult,
) -> None:
    width, height = image.size
    content, suffix = (_bare(image), ".png") if options.bare else (image.content, image.suffix)
    target = options.images / (task.stem + suffix)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    seen = {name: tuple(tuple(drawn.regions.get(name, ())) for drawn in objects) for name in ("", *observers)}
    regions = seen.pop("")
    phrases = tuple(drawn.phrase for drawn in objects)
    result.record = Record(task.stem + suffix, regions, phrases, spacing=image.spacing, observers=seen)
    result.fraction = float(rasterise(list(chain.from_iterable(regions)), height, width).mean())
    digest = hashlib.sha256(f"{width}x{height}".encode())
    digest.update(image.pixels.tobytes())
    result.picture = digest.hexdigest()


def _bare(image: SourceImage) -> bytes:
    """A PNG of the stored pixels: what else a file may hold (EXIF, comments, bytes after its end) is gone."""
    with Image.open(io.BytesIO(image.content)) as opened:
        return encode_png(opened if opened.mode in ("L", "RGB") else opened.convert("RGB"))
