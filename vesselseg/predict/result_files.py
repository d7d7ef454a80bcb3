"""Result files of one image: masks, probabilities, an overlay, a LabelMe file."""

from __future__ import annotations

import errno
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from vesselseg.imaging.frames import frame_rate
from vesselseg.imaging.labelme_writing import LabelledPolygon, labelme_content
from vesselseg.imaging.mask_polygons import mask_polygons
from vesselseg.imaging.overlay import draw_overlay
from vesselseg.imaging.rasterise import encode
from vesselseg.inference.predictor import Prediction
from vesselseg.output_folder import whole_file
from vesselseg.predict.edited_labels import FOLDER as LABELS
from vesselseg.predict.edited_labels import EditedLabels

PROBABILITY_SCALE = 65535  # stored value of probability 1 in a 16-bit PNG, as vesselseg eval reads it
FRAMES_PER_SECOND = 15.0  # the usual rate in coronary angiography
_MAX_TAG_LENGTH = 40  # characters


def phrase_tags(phrases: Sequence[str]) -> list[str]:
    """File name suffix per phrase: empty for a single phrase, else "_" and the phrase in letters and digits."""
    if len(phrases) == 1:
        return [""]
    tags: list[str] = []
    for phrase in phrases:
        plain = "_" + (re.sub(r"[^\w-]+", "_", phrase).strip("_")[:_MAX_TAG_LENGTH] or "phrase")
        tag, number = plain, 2
        while tag.casefold() in (known.casefold() for known in tags):
            tag, number = f"{plain}_{number}", number + 1
        tags.append(tag)
    return tags


class ResultWriter:
    """Writes to out/masks, out/probabilities, out/overlays, out/labelme, out/dicom-seg, each file atomically.

    labels: knows which LabelMe files were edited; those are not changed.
    """

    def __init__(
        self, out: Path, phrases: Sequence[str], kinds: Sequence[str], labels: EditedLabels | None = None
    ) -> None:
        self.out = Path(out)
        self._labels = labels or EditedLabels(self.out)
        self._tags = phrase_tags(phrases)
        self.kinds = kinds

    def write(
        self,
        name: str,
        image: Image.Image,
        source: Path | None,
        prediction: Prediction,
        drawn: np.ndarray | None = None,
    ) -> list[str]:
        """Write the results of an upright RGB image; returns their paths relative to out.

        source: the image's file; None if LabelMe cannot open it (a frame, DICOM, CMYK, 16 bits): the image is then
        written next to the LabelMe file. drawn: its `overlay`, if already drawn. If writing fails, the files written so
        far are removed.
        """
        written: list[str] = []
        try:
            for path in self._write_each(name, image, source, prediction, drawn):
                written.append(path)  # not list(...): after an error the paths so far are needed for removal
        except BaseException:
            self.remove(written)
            raise
        return written

    def remove(self, written: Sequence[str]) -> None:
        """Delete results, except edited LabelMe files. written: their paths relative to out."""
        for path in written:
            if not self._labels.protects(path):
                (self.out / path).unlink(missing_ok=True)

    def _write_each(
        self, name: str, image: Image.Image, source: Path | None, prediction: Prediction, drawn: np.ndarray | None
    ) -> Iterator[str]:
        for tag, mask, probability in zip(self._tags, prediction.masks, prediction.probabilities):
            if "masks" in self.kinds:
                yield self._png(f"masks/{name}{tag}.png", mask.astype(np.uint8) * 255)
            if "probs" in self.kinds:
                scaled = np.round(probability * PROBABILITY_SCALE).astype(np.uint16)
                yield self._png(f"probabilities/{name}{tag}.png", scaled)
        if "overlay" in self.kinds:
            yield self._png(f"overlays/{name}.png", overlay(image, prediction) if drawn is None else drawn)
        if "labelme" in self.kinds:
            yield from self._label_file(name, image, source, prediction)

    def _label_file(self, name: str, image: Image.Image, source: Path | None, prediction: Prediction) -> Iterator[str]:
        """The LabelMe file; without a source preceded by the image that it refers to."""
        path, picture = f"{LABELS}/{name}.json", f"{LABELS}/{name}.png"
        image_path = _relative_path(source or self.out / picture, self.out / path)
        text = json.dumps(prediction_labels(prediction, image_path), ensure_ascii=False, indent=1)
        content = text.encode("utf-8", "replace")
        writable = self._labels.claim(path, content)  # False: an edited file must be kept
        if source is None:
            if writable or not (self.out / picture).exists():
                self._png(picture, np.asarray(image))
            yield picture
        yield self._file(path, content) if writable else path

    def write_dicom(self, name: str, content: bytes) -> str:
        """Write a DICOM Segmentation object; returns its path relative to out."""
        return self._file(f"dicom-seg/{name}.dcm", content)

    def _png(self, name: str, pixels: np.ndarray) -> str:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        return self._file(name, buffer.getvalue())

    def _file(self, name: str, content: bytes) -> str:
        path = self.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, path.with_name(path.name + ".part")) as temporary:
            temporary.write_bytes(content)
        return name


def overlay(image: Image.Image, prediction: Prediction) -> np.ndarray:
    """(height, width, 3) uint8: the image with tinted and outlined masks."""
    return draw_overlay(np.asarray(image), prediction.masks.astype(np.uint8))


class OverlayVideo:
    """A clip's overlays as a video that browsers play: VP9 in MP4, which appears once it is closed as finished.

    times: of the frames, in seconds; their mean rate is the video's. Without them it is FRAMES_PER_SECOND.
    """

    def __init__(self, out: Path, name: str, times: Sequence[float] | None) -> None:
        self._out, self.name = Path(out), f"overlays/{name}.mp4"
        self._rate = min(60.0, max(1.0, frame_rate(times) or FRAMES_PER_SECOND))
        path = self._out / self.name
        self._temporary = path.with_name(f"{path.stem}.part.mp4")  # FFmpeg chooses the format by the suffix
        self._writer: Any = None

    def add(self, drawn: np.ndarray) -> None:
        """drawn: (height, width, 3) uint8 RGB; odd sides are padded by one line, because the format needs even ones."""
        height, width = drawn.shape[0] + drawn.shape[0] % 2, drawn.shape[1] + drawn.shape[1] % 2
        if self._writer is None:
            self._temporary.parent.mkdir(parents=True, exist_ok=True)
            code = cv2.VideoWriter.fourcc(*"vp09")
            self._writer = cv2.VideoWriter(str(self._temporary), cv2.CAP_FFMPEG, code, self._rate, (width, height))
            if not self._writer.isOpened():
                raise OSError(errno.EIO, "OpenCV cannot write videos here; omit overlay from --save", self.name)
        padded = np.pad(drawn, ((0, height - drawn.shape[0]), (0, width - drawn.shape[1]), (0, 0)), "edge")
        self._writer.write(cv2.cvtColor(padded, cv2.COLOR_RGB2BGR))

    def close(self, finished: bool) -> None:
        """Move the finished video to its path, or delete it."""
        if self._writer is not None:
            self._writer.release()
        if finished:
            self._temporary.replace(self._out / self.name)
        else:
            self._temporary.unlink(missing_ok=True)


def prediction_labels(prediction: Prediction, image_path: str) -> dict[str, Any]:
    """The content of a LabelMe file: one polygon per connected component, labelled with its phrase.

    Polygons of one phrase share a group_id; see `labelme_content`.
    """
    polygons = [
        LabelledPolygon(phrase, polygon.tolist(), group)
        for group, (phrase, mask) in enumerate(zip(prediction.phrases, prediction.masks))
        for polygon in mask_polygons(mask)
    ]
    height, width = prediction.masks.shape[1:]
    return labelme_content(image_path, height, width, polygons, prediction.phrases)


def describe_objects(prediction: Prediction) -> list[dict[str, Any]]:
    """Per phrase: pixels of its mask, their share of the image, and their mean probability (0 for an empty mask)."""
    return [
        {
            "phrase": phrase,
            "pixels": int(mask.sum()),
            "share": round(float(mask.mean()), 6),
            "score": round(float(probability[mask].mean()), 6) if mask.any() else 0.0,
        }
        for phrase, mask, probability in zip(prediction.phrases, prediction.masks, prediction.probabilities)
    ]


def describe_prediction(prediction: Prediction, codes: bool) -> dict[str, Any]:
    """The entry of one image or frame in predictions.json; codes: with run-length codes, for coco.json."""
    described: dict[str, Any] = {
        "share": round(float(prediction.masks.any(axis=0).mean()), 6),
        "objects": describe_objects(prediction),
    }
    return {**described, "codes": run_length_codes(prediction)} if codes else described


def run_length_codes(prediction: Prediction) -> list[Any]:
    """COCO's run-length code of each mask."""
    return [encode(mask) for mask in prediction.masks]


def _relative_path(image: Path, json_path: Path) -> str:
    """imagePath: from the JSON's folder to the image, symbolic links resolved, with forward slashes."""
    resolved = image.parent.resolve() / image.name
    return Path(os.path.relpath(resolved, json_path.parent.resolve())).as_posix()
