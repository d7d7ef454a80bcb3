"""One process's share of the input: read, predict, write, record.

Images are predicted in batches, clips one after the other, see `clips`. While the model runs, threads read and
preprocess the images of the next batch and write the results of the last one. A unit that runs out of memory next to
this other work is predicted again at the end, alone.
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
from vesselseg.predict.distributed_work import DistributedWork
from vesselseg.predict.frame_origins import frame_origins
from vesselseg.predict.inputs import InputUnit, ReadUnit, read_unit
from vesselseg.predict.options import Outcome, PredictOptions
from vesselseg.predict.result_files import ResultWriter, describe_prediction, phrase_tags
from vesselseg.predict.result_folder import Entry, ResultFolder, assign_output_names
from vesselseg.progress import progress_bar

_THREADS = min(8, max(4, available_cores()))  # shared by reading, preprocessing and writing
_TOO_LARGE = "does not fit into memory, not even alone"


class PredictWorker:
    """Predicts one process's share of the input units. inputs: the units of all processes."""

    def __init__(
        self,
        predictor: Predictor,
        fingerprint: str,
        results: ResultFolder,
        inputs: Sequence[InputUnit],
        options: PredictOptions,
        work: DistributedWork,
    ) -> None:
        clips = {unit.file for unit in inputs if unit.parts or unit.path.suffix.lower() not in IMAGE_SUFFIXES}
        tags = phrase_tags(options.phrases)
        self._names = assign_output_names([unit.file for unit in inputs], tags, results.entries, clips)
        self._writer = ResultWriter(results.out, options.phrases, options.save, results.labels)
        self._predictor, self._fingerprint, self._results = predictor, fingerprint, results
        self._options, self._work = options, work
        sizes = [_file_bytes(unit) for unit in inputs] if work.world > 1 else []
        self._inputs = work.own_share(inputs, sizes) if work.world > 1 else list(inputs)
        self._predicted, self._skipped = 0, 0
        self._others = len(results.entries.keys() - {unit.file for unit in inputs})
        self._failed: list[tuple[str, str]] = []
        self._writing: deque[Future[Entry | _OutOfMemory]] = deque()
        self._postponed: list[InputUnit] = []  # units that ran out of memory next to other work
        self._retrying = False  # whether the postponed units are being predicted, each alone
        self._pool = ThreadPoolExecutor(_THREADS)
        self._bar = progress_bar(len(inputs), "predicting", "file", hidden=not work.is_main_process)

    def run(self) -> Outcome:
        """Predict the share. The main process then waits for the others and returns the outcome of all."""
        with self._bar, self._pool:
            try:
                self._predict_units(self._inputs)
                self._collect_written(0)
                self._retrying = True
                while self._postponed:
                    self._predict_units([self._postponed.pop(0)])
                    self._collect_written(0)
            finally:  # after Ctrl-C, results that are already being written are recorded too
                self._collect_written(0)
            own = [self._predicted, self._skipped, self._failed, sorted(self._results.labels.kept)]
            parts = self._work.gather(own, lambda: self._advance(0))
        predicted, skipped = sum(part[0] for part in parts), sum(part[1] for part in parts)
        failed = sorted((file, reason) for part in parts for file, reason in part[2])
        kept = sorted(path for part in parts for path in part[3])
        return Outcome(predicted, skipped, tuple(failed), self._others, tuple(kept))

    def _predict_units(self, units: Iterable[InputUnit]) -> None:
        waiting: list[_PreprocessedImage] = []
        for item in self._read_ahead(units):
            if isinstance(item, _PreprocessedImage):
                waiting.append(item)
            elif isinstance(item, _OutOfMemory):
                self._postpone(item.read)
            elif item.pictures is None:
                self._fail(item, item.error)
            else:
                self._predict_clip(item, item.pictures)
            if len(waiting) >= self._options.batch:
                self._predict_batch(self._take_batch(waiting))
        while waiting:
            self._predict_batch(self._take_batch(waiting))

    def _take_batch(self, waiting: list[_PreprocessedImage]) -> list[_PreprocessedImage]:
        """Remove and return the first images: at most a batch, and at most BATCH_PIXELS unless it is a single image."""
        batch: list[_PreprocessedImage] = []
        pixels = 0
        while waiting and len(batch) < self._options.batch:
            pixels += probability_map_pixels(waiting[0].image, len(self._options.phrases))
            if batch and pixels > BATCH_PIXELS:
                break
            batch.append(waiting.pop(0))
        return batch

    def _read_ahead(self, units: Iterable[InputUnit]) -> Iterator[ReadUnit | _PreprocessedImage | _OutOfMemory]:
        """The unfinished units, read one batch ahead."""
        reading: deque[Future[ReadUnit | _PreprocessedImage | _OutOfMemory | None]] = deque()
        remaining = iter(units)
        while True:
            for unit in remaining:
                reading.append(self._pool.submit(self._read, unit))
                if len(reading) > self._options.batch:
                    break
            if not reading:
                return
            item = reading.popleft().result()
            if item is None:
                self._skipped += 1
                self._advance(1)
            else:
                yield item

    def _read(self, unit: InputUnit) -> ReadUnit | _PreprocessedImage | _OutOfMemory | None:
        """A preprocessed image; or the opened unit if it is a clip or unreadable; None if it is finished."""
        try:
            start = time.perf_counter()
            read = read_unit(unit, self._is_finished)
            if read is None:
                return None
            if "dicom-seg" in self._options.save and read.pictures is not None and read.pictures.kind != "dicom":
                # A Segmentation object refers to DICOM instances, so it needs DICOM input.
                return replace(read, pictures=None, error="no DICOM file, which dicom-seg needs; omit it from --save")
            if read.pictures is None or read.pictures.frames > 1:
                return read
            image = read.pictures.frame(0)
            request = self._predictor.preprocess([image], [self._options.phrases], self._options.flips)
            return _PreprocessedImage(read, image, request, time.perf_counter() - start)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        return _OutOfMemory(ReadUnit(unit))

    def _is_finished(self, unit: InputUnit, size: int, sha256: str) -> bool:
        clip = "frames" in self._results.entries.get(unit.file, {})
        options = self._options.result_options(clip)
        return self._results.is_finished(unit.file, size, sha256, self._fingerprint, options)

    def _predict_batch(self, batch: Sequence[_PreprocessedImage]) -> None:
        start = time.perf_counter()
        predictions = self._run_model([item.request for item in batch])
        seconds = (time.perf_counter() - start) / len(batch)
        self._collect_written(len(batch))
        for item, prediction in zip(batch, predictions):
            if prediction is None:
                self._postpone(item.read)
            else:
                self._writing.append(self._pool.submit(self._write, item, prediction, item.seconds + seconds))

    def _collect_written(self, left: int) -> None:
        """Record written results, oldest first, until only `left` images are still being written."""
        while len(self._writing) > left:
            written = self._writing.popleft().result()
            if isinstance(written, _OutOfMemory):
                self._postpone(written.read)
            else:
                self._record(written)

    def _postpone(self, read: ReadUnit) -> None:
        """Predict a unit that ran out of memory at the end, alone; if it already was alone, it failed."""
        if self._retrying:
            self._fail(read, _TOO_LARGE)
        else:
            self._postponed.append(read.unit)

    def _record(self, entry: Entry) -> None:
        self._results.add(entry)
        if "error" in entry:
            self._failed.append((entry["file"], entry["error"]))
        else:
            self._predicted += 1
        self._advance(1)

    def _advance(self, units: int) -> None:
        done = self._work.count_finished(units)
        self._bar.update(done if self._work.world == 1 else done - self._bar.n)

    def _run_model(self, requests: Sequence[Request]) -> list[Prediction | None]:
        """One prediction per image; None for an image that runs out of memory alone, without the rest of its batch."""
        try:
            return list(self._predictor.run(requests, self._options.threshold))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        if len(requests) == 1:
            return [None]
        return [self._run_model([request])[0] for request in requests]

    def _write(self, item: _PreprocessedImage, prediction: Prediction, seconds: float) -> Entry | _OutOfMemory:
        """seconds: spent on the image so far, without waiting."""
        start = time.perf_counter()
        try:
            entry = self._image_entry(item, prediction)
        except Exception as error:
            if is_out_of_memory(error):
                return _OutOfMemory(item.read)
            return {**self._base_entry(item.read), "error": _reason(error)}
        return {**entry, "seconds": round(seconds + time.perf_counter() - start, 4)}

    def _image_entry(self, item: _PreprocessedImage, prediction: Prediction) -> Entry:
        """Write an image's results; returns its entry."""
        read, name = item.read, self._names[item.read.unit.file]
        assert read.pictures is not None
        prediction = self._options.post_processing.apply_to(prediction)
        source = read.unit.path if read.pictures.labelme_opens else None
        if source is not None and source.suffix.lower() not in IMAGE_SUFFIXES:
            source = None  # an image by its content only: other tools would go by its name
        content, segmentation = b"", self._new_segmentation(read)
        if segmentation is not None:  # built before anything is written, since highdicom may refuse the header
            segmentation.add(prediction.masks)
            content = segmentation.content()
        outputs = self._writer.write(name, item.image, source, prediction)
        outputs += [self._writer.write_dicom(name, content)] if content else []
        return {
            **self._done_entry(read, read.pictures, prediction.threshold, outputs),
            **frame_origins(read.unit, read.pictures)(0),
            **describe_prediction(prediction, "coco" in self._options.save),
        }

    def _predict_clip(self, read: ReadUnit, pictures: FrameSource) -> None:
        self._collect_written(0)
        for batch in dict.fromkeys((self._options.batch, 1)):
            start = time.perf_counter()
            try:
                entry = self._clip_entry(read, pictures, batch)
            except Exception as error:
                if is_out_of_memory(error):
                    continue
                return self._fail(read, _reason(error))
            return self._record({**entry, "seconds": round(time.perf_counter() - start, 4)})
        self._postpone(read)

    def _clip_entry(self, read: ReadUnit, pictures: FrameSource, batch: int) -> Entry:
        """Predict a clip and write its results; returns its entry."""
        options = self._options
        frames, threshold = Frames(pictures, cache_size=2 * batch + 1), options.threshold
        predictions = segment_cine(
            self._predictor, frames, options.phrases, options.cine, options.keyframes, threshold, batch, options.flips
        )
        name, segmentation = self._names[read.unit.file], self._new_segmentation(read)
        refine, origin = options.post_processing.apply_to, frame_origins(read.unit, pictures)
        clip = ClipWriter(name, frames, self._writer, segmentation, self._pool, refine, origin)
        described, outputs = clip.write(predictions)
        used = self._predictor.threshold if threshold is None else threshold
        return {
            **self._done_entry(read, pictures, used, outputs),
            "share": round(sum(frame["share"] for frame in described) / len(described), 6),
            "frames": described,
        }

    def _new_segmentation(self, read: ReadUnit) -> SegmentationObject | None:
        if "dicom-seg" not in self._options.save:
            return None
        return SegmentationObject(read.unit.paths, self._options.phrases, self._fingerprint)

    def _fail(self, read: ReadUnit, reason: str) -> None:
        self._record({**self._base_entry(read), "error": reason})

    def _done_entry(self, read: ReadUnit, pictures: FrameSource, threshold: float, outputs: Sequence[str]) -> Entry:
        width, height = pictures.size
        return {
            **self._base_entry(read),
            "kind": pictures.kind,
            "width": width,
            "height": height,
            "notes": list(pictures.notes if read.unit.parts else (*read.unit.notes, *pictures.notes)),
            "model": self._fingerprint,
            "options": self._options.result_options(clip=pictures.frames > 1),
            "threshold": threshold,
            "outputs": list(outputs),
        }

    def _base_entry(self, read: ReadUnit) -> Entry:
        file = read.unit.file
        return {"file": file, "name": self._names[file], "bytes": read.size, "sha256": read.sha256}


@dataclass(frozen=True)
class _PreprocessedImage:
    """A single image, ready for the model. seconds: time spent reading and preprocessing it."""

    read: ReadUnit
    image: Image.Image
    request: Request
    seconds: float


@dataclass(frozen=True)
class _OutOfMemory:
    """A unit that ran out of memory while it was read or written."""

    read: ReadUnit


def _reason(error: Exception) -> str:
    """Why one file failed. Defects, and file system errors that would affect every file, are raised again."""
    if isinstance(error, UserError):
        return str(error)
    if not isinstance(error, OSError) or error.errno != errno.ENAMETOOLONG:
        raise error
    return "its name with the phrase is too long for the file system; shorten it"


def _file_bytes(unit: InputUnit) -> int:
    total = 0
    for path in unit.paths:
        try:
            total += path.stat().st_size
        except OSError:  # reported when the file is read
            continue
    return total
