"""One process's share of the units: read, predicted, written, noted down.

Images are predicted in batches, clips one after the other, see `predict_clip`. Threads read the images of the next
batch, make their views and write the results of the last one, while the model is at work.
"""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from PIL import Image

from vesselseg.cli import progress_bar
from vesselseg.data.source_images import IMAGE_SUFFIXES
from vesselseg.errors import UserError
from vesselseg.inference.cine import segment_cine
from vesselseg.inference.dicom_seg import SegmentationObject
from vesselseg.inference.input_files import InputUnit, ReadUnit, read_unit
from vesselseg.inference.pictures import Pictures
from vesselseg.inference.predict_clip import ClipWriter, Frames
from vesselseg.inference.predict_options import Outcome, PredictOptions
from vesselseg.inference.predictor import Asked, Prediction, Predictor
from vesselseg.inference.result_files import ResultWriter, describe_prediction, phrase_tags
from vesselseg.inference.result_folder import Entry, ResultFolder, name_outputs
from vesselseg.inference.shared_work import SharedWork

_BATCH_PIXELS = (
    32_000_000  # images of a batch together, if more than one: probabilities take 4 bytes a pixel and phrase
)
_THREADS = min(8, max(4, os.cpu_count() or 4))  # read images, make their views and write results, all at once
_TOO_LARGE = "does not fit into the device's memory, not even alone"


class PredictRun:
    """One call of one process: reads, predicts and writes its share."""

    def __init__(
        self,
        predictor: Predictor,
        fingerprint: str,
        results: ResultFolder,
        inputs: Sequence[InputUnit],
        options: PredictOptions,
        work: SharedWork,
    ) -> None:
        clips = {item.file for item in inputs if item.parts or item.path.suffix.lower() not in IMAGE_SUFFIXES}
        tags = phrase_tags(options.phrases)
        self._names = name_outputs([item.file for item in inputs], tags, results.entries, clips)
        self._writer = ResultWriter(results.out, options.phrases, options.save)
        self._predictor, self._fingerprint, self._results = predictor, fingerprint, results
        self._options, self._work, self._total = options, work, len(inputs)
        self._inputs = work.share(inputs, [_bytes_of(item) for item in inputs]) if work.world > 1 else list(inputs)
        self._predicted, self._skipped = 0, 0
        self._others = len(results.entries.keys() - {item.file for item in inputs})
        self._failed: list[tuple[str, str]] = []
        self._writing: deque[Future[Entry]] = deque()

    def run(self) -> Outcome:
        """Its share; then, in the first process, wait for the others and return the outcome of all."""
        self._bar = progress_bar(self._total, "predicting", "file", hidden=not self._work.leads)
        with self._bar, ThreadPoolExecutor(_THREADS) as pool:
            self._pool = pool
            try:
                self._predict_all()
            finally:  # after Ctrl-C, what is written counts
                self._note_written(0)
            mine = [self._predicted, self._skipped, self._failed]
            parts = self._work.gather(mine, lambda: self._progress(0))
        failed = sorted((file, reason) for part in parts for file, reason in part[2])
        return Outcome(sum(part[0] for part in parts), sum(part[1] for part in parts), tuple(failed), self._others)

    def _predict_all(self) -> None:
        waiting: list[_Still] = []
        for found in self._read():
            if isinstance(found, _Still):
                waiting.append(found)
            elif found.pictures is None:
                self._fail(found, found.error)
            else:
                self._predict_clip(found, found.pictures)
            if len(waiting) >= self._options.batch:
                self._predict(_take(waiting, self._options.batch))
        while waiting:
            self._predict(_take(waiting, self._options.batch))

    def _read(self) -> Iterator[ReadUnit | _Still]:
        """What is not finished, read ahead by one batch."""
        reading: deque[Future[ReadUnit | _Still | None]] = deque()
        inputs = iter(self._inputs)
        while True:
            for item in inputs:
                reading.append(self._pool.submit(self._read_one, item))
                if len(reading) > self._options.batch:
                    break
            if not reading:
                return
            found = reading.popleft().result()
            if found is None:
                self._skipped += 1
                self._progress(1)
            else:
                yield found

    def _read_one(self, item: InputUnit) -> ReadUnit | _Still | None:
        """A single picture, ready for the model; a clip or what cannot be read, as it is; None if it is finished."""
        start = time.perf_counter()
        read = read_unit(item, self._is_finished)
        found = None if read is None else self._referable(read)
        if found is None or found.pictures is None or found.pictures.frames > 1:
            return found
        image = found.pictures.frame(0)
        asked = self._predictor.ask([image], [self._options.phrases], self._options.flips)
        return _Still(found, image, asked, time.perf_counter() - start)

    def _referable(self, found: ReadUnit) -> ReadUnit:
        """dicom-seg refers to its input, which must be DICOM then."""
        if "dicom-seg" in self._options.save and found.pictures is not None and found.pictures.kind != "dicom":
            return replace(found, pictures=None, error="no DICOM file, which dicom-seg needs; leave it out of --save")
        return found

    def _is_finished(self, item: InputUnit, size: int, sha256: str) -> bool:
        clip = "frames" in self._results.entries.get(item.file, {})
        return self._results.finished(item.file, size, sha256, self._fingerprint, self._options.deciding(clip))

    def _predict(self, batch: Sequence[_Still]) -> None:
        start = time.perf_counter()
        predictions = self._predictions([still.asked for still in batch])
        seconds = (time.perf_counter() - start) / len(batch)
        self._note_written(len(batch))
        for still, prediction in zip(batch, predictions):
            if prediction is None:
                self._fail(still.found, _TOO_LARGE)
            else:
                self._writing.append(self._pool.submit(self._write, still, prediction, still.seconds + seconds))

    def _note_written(self, left: int) -> None:
        """Note down what is written, until so many files are still being written."""
        while len(self._writing) > left:
            self._note(self._writing.popleft().result())

    def _note(self, entry: Entry) -> None:
        self._results.add(entry)
        if "error" in entry:
            self._failed.append((entry["file"], entry["error"]))
        else:
            self._predicted += 1
        self._progress(1)

    def _progress(self, units: int) -> None:
        done = self._work.advance(units)
        self._bar.update(done if self._work.world == 1 else done - self._bar.n)

    def _predictions(self, asked: Sequence[Asked]) -> list[Prediction | None]:
        """One per image; None for one that does not fit into the device's memory even alone."""
        try:
            return list(self._predictor.answer(asked, self._options.threshold))
        except torch.OutOfMemoryError:
            if len(asked) == 1:
                return [None]
        return [self._predictions([one])[0] for one in asked]

    def _write(self, still: _Still, prediction: Prediction, seconds: float) -> Entry:
        """seconds: what was spent on the file so far, without the time that it waited."""
        found, start, name = still.found, time.perf_counter(), self._names[still.found.source.file]
        assert found.pictures is not None
        prediction = self._options.post_processing.of(prediction)
        source = found.source.path if found.pictures.labelme_opens else None
        try:
            content, segmentation = b"", self._segmentation(found)
            if segmentation is not None:  # made before anything is written: it may be refused
                segmentation.add(prediction.masks)
                content = segmentation.content()
            outputs = self._writer.write(name, still.image, source, prediction)
            outputs += [self._writer.write_dicom(name, content)] if content else []
        except (OSError, UserError) as error:
            return {**self._about(found), "error": _reason(error)}
        entry = {
            **self._done(found, found.pictures, prediction.threshold, outputs),
            **describe_prediction(prediction, "coco" in self._options.save),
        }
        entry["seconds"] = round(seconds + time.perf_counter() - start, 4)
        return entry

    def _predict_clip(self, found: ReadUnit, pictures: Pictures) -> None:
        self._note_written(0)
        for batch in dict.fromkeys((self._options.batch, 1)):
            start = time.perf_counter()
            try:
                entry = self._clip_entry(found, pictures, batch)
                entry["seconds"] = round(time.perf_counter() - start, 4)
            except torch.OutOfMemoryError:
                entry = {**self._about(found), "error": _TOO_LARGE}
                continue
            except (OSError, UserError) as error:
                entry = {**self._about(found), "error": _reason(error)}
            break
        self._note(entry)

    def _clip_entry(self, found: ReadUnit, pictures: Pictures, batch: int) -> Entry:
        options = self._options
        frames, threshold = Frames(pictures, kept=2 * batch + 1), options.threshold
        predictions = segment_cine(
            self._predictor, frames, options.phrases, options.cine, options.keyframes, threshold, batch, options.flips
        )
        name, segmentation = self._names[found.source.file], self._segmentation(found)
        clip = ClipWriter(name, frames, self._writer, segmentation, self._pool, options.post_processing.of)
        described, outputs = clip.write(predictions)
        used = self._predictor.threshold if threshold is None else threshold
        return {
            **self._done(found, pictures, used, outputs),
            "share": round(sum(frame["share"] for frame in described) / len(described), 6),
            "frames": described,
        }

    def _segmentation(self, found: ReadUnit) -> SegmentationObject | None:
        if "dicom-seg" not in self._options.save:
            return None
        return SegmentationObject(found.source.paths, self._options.phrases, self._fingerprint)

    def _fail(self, found: ReadUnit, reason: str) -> None:
        self._note({**self._about(found), "error": reason})

    def _done(self, found: ReadUnit, pictures: Pictures, threshold: float, outputs: Sequence[str]) -> Entry:
        width, height = pictures.size
        return {
            **self._about(found),
            "kind": pictures.kind,
            "width": width,
            "height": height,
            "notes": list(pictures.notes),
            "model": self._fingerprint,
            "options": self._options.deciding(clip=pictures.frames > 1),
            "threshold": threshold,
            "outputs": list(outputs),
        }

    def _about(self, found: ReadUnit) -> Entry:
        file = found.source.file
        return {"file": file, "name": self._names[file], "bytes": found.size, "sha256": found.sha256}


@dataclass(frozen=True)
class _Still:
    """A single picture, read and ready for the model. seconds: that took."""

    found: ReadUnit
    image: Image.Image
    asked: Asked
    seconds: float


def _take(waiting: list[_Still], count: int) -> list[_Still]:
    """The first files off the list: at most count, and no more than one if they are large."""
    batch: list[_Still] = []
    pixels = 0
    while waiting and len(batch) < count:
        pixels += waiting[0].image.width * waiting[0].image.height
        if batch and pixels > _BATCH_PIXELS:
            break
        batch.append(waiting.pop(0))
    return batch


def _reason(error: OSError | UserError) -> str:
    """Why one file failed; an error of the file system that all files would meet is raised again."""
    if isinstance(error, UserError):
        return str(error)
    if error.errno != errno.ENAMETOOLONG:
        raise error
    return "its name is too long for the file system once the phrase is added; shorten it"


def _bytes_of(item: InputUnit) -> int:
    total = 0
    for path in item.paths:
        try:
            total += path.stat().st_size
        except OSError:  # reading it will say why
            continue
    return total
