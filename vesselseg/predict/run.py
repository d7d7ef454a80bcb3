"""One process's share of the units: read, predicted, written, noted down.

Images are predicted in batches, clips one after the other, see `predict_clip`. Threads read the images of the next
batch, make their views and write the results of the last one, while the model is at work. What main memory does not
hold beside all of that is tried again in the end, with nothing beside it.
"""

from __future__ import annotations

import errno
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from PIL import Image

from vesselseg.errors import UserError
from vesselseg.imaging.decode import IMAGE_SUFFIXES
from vesselseg.imaging.frames import FrameSource
from vesselseg.inference.cine import segment_cine
from vesselseg.inference.out_of_memory import BATCH_PIXELS, is_out_of_memory, probability_map_pixels
from vesselseg.inference.predictor import Prediction, Predictor, Request
from vesselseg.machine import available_cores
from vesselseg.predict.clips import ClipWriter, Frames
from vesselseg.predict.dicom_seg import SegmentationObject
from vesselseg.predict.inputs import InputUnit, ReadUnit, read_unit
from vesselseg.predict.options import Outcome, PredictOptions
from vesselseg.predict.result_files import ResultWriter, describe_prediction, phrase_tags
from vesselseg.predict.result_folder import Entry, ResultFolder, name_outputs
from vesselseg.predict.shared_work import SharedWork
from vesselseg.progress import progress_bar

_THREADS = min(8, max(4, available_cores()))  # read images, make their views and write results, all at once
_TOO_LARGE = "does not fit into memory, not even alone"


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
        self._writer = ResultWriter(results.out, options.phrases, options.save, results.labels)
        self._predictor, self._fingerprint, self._results = predictor, fingerprint, results
        self._options, self._work = options, work
        self._inputs = work.share(inputs, [_bytes_of(item) for item in inputs]) if work.world > 1 else list(inputs)
        self._predicted, self._skipped = 0, 0
        self._others = len(results.entries.keys() - {item.file for item in inputs})
        self._failed: list[tuple[str, str]] = []
        self._writing: deque[Future[Entry | _Crowded]] = deque()
        self._crowded: list[InputUnit] = []
        self._alone = False
        self._pool = ThreadPoolExecutor(_THREADS)
        self._bar = progress_bar(len(inputs), "predicting", "file", hidden=not work.is_main_process)

    def run(self) -> Outcome:
        """Its share; then, in the first process, wait for the others and return the outcome of all."""
        with self._bar, self._pool:
            try:
                self._predict_all(self._inputs)
                self._predict_crowded()
            finally:  # after Ctrl-C, what is written counts
                self._note_written(0)
            mine = [self._predicted, self._skipped, self._failed, sorted(self._results.labels.kept)]
            parts = self._work.gather(mine, lambda: self._progress(0))
        predicted, skipped = sum(part[0] for part in parts), sum(part[1] for part in parts)
        failed = sorted((file, reason) for part in parts for file, reason in part[2])
        kept = sorted(path for part in parts for path in part[3])
        return Outcome(predicted, skipped, tuple(failed), self._others, tuple(kept))

    def _predict_crowded(self) -> None:
        self._note_written(0)
        self._alone = True
        while self._crowded:
            self._predict_all([self._crowded.pop(0)])
            self._note_written(0)

    def _predict_all(self, units: Iterable[InputUnit]) -> None:
        waiting: list[_Still] = []
        for found in self._read(units):
            if isinstance(found, _Still):
                waiting.append(found)
            elif isinstance(found, _Crowded):
                self._put_off(found.unit)
            elif found.pictures is None:
                self._fail(found, found.error)
            else:
                self._predict_clip(found, found.pictures)
            if len(waiting) >= self._options.batch:
                self._predict(self._take(waiting))
        while waiting:
            self._predict(self._take(waiting))

    def _take(self, waiting: list[_Still]) -> list[_Still]:
        """The first files off the list: at most a batch, and no more than one if they are large."""
        batch: list[_Still] = []
        pixels = 0
        while waiting and len(batch) < self._options.batch:
            pixels += probability_map_pixels(waiting[0].image, len(self._options.phrases))
            if batch and pixels > BATCH_PIXELS:
                break
            batch.append(waiting.pop(0))
        return batch

    def _read(self, units: Iterable[InputUnit]) -> Iterator[ReadUnit | _Still | _Crowded]:
        """What is not finished, read ahead by one batch."""
        reading: deque[Future[ReadUnit | _Still | _Crowded | None]] = deque()
        inputs = iter(units)
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

    def _read_one(self, item: InputUnit) -> ReadUnit | _Still | _Crowded | None:
        try:
            return self._opened(item)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        return _Crowded(ReadUnit(item))

    def _opened(self, item: InputUnit) -> ReadUnit | _Still | None:
        """A single picture, ready for the model; a clip or what cannot be read, as it is; None if it is finished."""
        start = time.perf_counter()
        read = read_unit(item, self._is_finished)
        found = None if read is None else self._referable(read)
        if found is None or found.pictures is None or found.pictures.frames > 1:
            return found
        image = found.pictures.frame(0)
        asked = self._predictor.preprocess([image], [self._options.phrases], self._options.flips)
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
                self._put_off(still.found)
            else:
                self._writing.append(self._pool.submit(self._write, still, prediction, still.seconds + seconds))

    def _note_written(self, left: int) -> None:
        """Note down what is written, until so many files are still being written."""
        while len(self._writing) > left:
            written = self._writing.popleft().result()
            if isinstance(written, _Crowded):
                self._put_off(written.unit)
            else:
                self._note(written)

    def _put_off(self, found: ReadUnit) -> None:
        """Memory has run out over a unit."""
        if self._alone:
            self._fail(found, _TOO_LARGE)
        else:
            self._crowded.append(found.source)

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

    def _predictions(self, asked: Sequence[Request]) -> list[Prediction | None]:
        """One per image; None for one that memory runs out over without the others of its batch, too."""
        try:
            return list(self._predictor.run(asked, self._options.threshold))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        if len(asked) == 1:
            return [None]
        return [self._predictions([one])[0] for one in asked]

    def _write(self, still: _Still, prediction: Prediction, seconds: float) -> Entry | _Crowded:
        """seconds: what was spent on the file so far, without the time that it waited."""
        start = time.perf_counter()
        try:
            entry = self._still_entry(still, prediction)
        except Exception as error:
            if is_out_of_memory(error):
                return _Crowded(still.found)
            return {**self._about(still.found), "error": _reason(error)}
        return {**entry, "seconds": round(seconds + time.perf_counter() - start, 4)}

    def _still_entry(self, still: _Still, prediction: Prediction) -> Entry:
        found, name = still.found, self._names[still.found.source.file]
        assert found.pictures is not None
        prediction = self._options.post_processing.apply_to(prediction)
        source = found.source.path if found.pictures.labelme_opens else None
        if source is not None and source.suffix.lower() not in IMAGE_SUFFIXES:
            source = None  # an image by its content alone: its name would tell other tools something else
        content, segmentation = b"", self._segmentation(found)
        if segmentation is not None:  # made before anything is written: it may be refused
            segmentation.add(prediction.masks)
            content = segmentation.content()
        outputs = self._writer.write(name, still.image, source, prediction)
        outputs += [self._writer.write_dicom(name, content)] if content else []
        return {
            **self._done(found, found.pictures, prediction.threshold, outputs),
            **describe_prediction(prediction, "coco" in self._options.save),
        }

    def _predict_clip(self, found: ReadUnit, pictures: FrameSource) -> None:
        self._note_written(0)
        for batch in dict.fromkeys((self._options.batch, 1)):
            start = time.perf_counter()
            try:
                entry = self._clip_entry(found, pictures, batch)
            except Exception as error:
                if is_out_of_memory(error):
                    continue
                return self._fail(found, _reason(error))
            return self._note({**entry, "seconds": round(time.perf_counter() - start, 4)})
        self._put_off(found)

    def _clip_entry(self, found: ReadUnit, pictures: FrameSource, batch: int) -> Entry:
        options = self._options
        frames, threshold = Frames(pictures, kept=2 * batch + 1), options.threshold
        predictions = segment_cine(
            self._predictor, frames, options.phrases, options.cine, options.keyframes, threshold, batch, options.flips
        )
        name, segmentation = self._names[found.source.file], self._segmentation(found)
        clip = ClipWriter(name, frames, self._writer, segmentation, self._pool, options.post_processing.apply_to)
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

    def _done(self, found: ReadUnit, pictures: FrameSource, threshold: float, outputs: Sequence[str]) -> Entry:
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
    asked: Request
    seconds: float


@dataclass(frozen=True)
class _Crowded:
    """A unit that memory has run out over while it was read or written."""

    unit: ReadUnit


def _reason(error: Exception) -> str:
    """Why one file failed; a defect, or an error of the file system that all files would meet, is raised again."""
    if isinstance(error, UserError):
        return str(error)
    if not isinstance(error, OSError) or error.errno != errno.ENAMETOOLONG:
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
