"""Files in, result files out: batch after batch, each written as it comes, a broken file listed and passed over."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from vesselseg.data.feature_store import digest, weights_fingerprint
from vesselseg.data.prompts import clean_phrase
from vesselseg.errors import UserError
from vesselseg.inference.input_files import InputFile, ReadFile, find_inputs, read_file
from vesselseg.inference.load import load_predictor
from vesselseg.inference.predictor import Prediction, Predictor
from vesselseg.inference.result_files import (
    KINDS,
    PROBABILITY_SCALE,
    ResultWriter,
    describe_objects,
    phrase_tags,
    run_length_codes,
)
from vesselseg.inference.result_folder import Entry, ResultFolder, name_outputs

_BATCH_PIXELS = (
    32_000_000  # images of a batch together, if more than one: probabilities take 4 bytes a pixel and phrase
)
_THREADS = 4  # read and write images while others are read and written


@dataclass(frozen=True)
class PredictOptions:
    """threshold: None takes the one stored with the model. batch: images given to the model at once."""

    phrases: tuple[str, ...]
    threshold: float | None = None
    save: tuple[str, ...] = KINDS
    batch: int = 4

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.save if kind not in KINDS]
        if unknown or not self.save:
            raise UserError(f"save: expected some of {', '.join(KINDS)}; found {', '.join(unknown) or 'nothing'}")

    def deciding(self) -> dict[str, Any]:
        """What decides the results, as JSON holds it."""
        threshold = "auto" if self.threshold is None else self.threshold
        return {"phrases": list(self.phrases), "threshold": threshold, "save": sorted(self.save)}


@dataclass(frozen=True)
class Outcome:
    """predicted, skipped: numbers of files; failed: (file, reason)."""

    predicted: int
    skipped: int
    failed: tuple[tuple[str, str], ...]


def predict_files(
    model: str, source: Path, out: Path, options: PredictOptions, device: str = "auto", base: str | None = None
) -> Outcome:
    """Predict an image, a folder or a list of paths into out, and go on where an earlier call has ended.

    model: what `load_predictor` opens; base: a checkpoint's base folder, if it has moved. Raises UserError for input
    that is of no use as a whole; single files that fail are in the outcome and in predictions.json.
    """
    options = checked(options)
    inputs = find_inputs(source)
    _check_apart(Path(source), inputs, Path(out))
    predictor = load_predictor(model, device=device, base=base)
    fingerprint = predictor_fingerprint(predictor)
    header = {
        "model": {"path": str(model), "fingerprint": fingerprint},
        "probability_scale": PROBABILITY_SCALE,
        **options.deciding(),
        "threshold": predictor.threshold if options.threshold is None else options.threshold,
        "threshold_origin": "stored with the model" if options.threshold is None else "given",
    }
    with ResultFolder(out).opened(header) as results:
        return _Run(predictor, fingerprint, results, inputs, options).run()


def checked(options: PredictOptions) -> PredictOptions:
    """With tidy phrases, each once; raises UserError for one that cannot be asked."""
    try:
        phrases = tuple(dict.fromkeys(clean_phrase(phrase) for phrase in options.phrases))
    except ValueError as error:
        raise UserError(f"--phrase: {error}") from None
    if not phrases:
        raise UserError('no phrase is given; say what to segment, e.g. "blood vessel"')
    return PredictOptions(phrases, options.threshold, options.save, options.batch)


def predictor_fingerprint(predictor: Predictor) -> str:
    """24 hex digits that tell models apart: weights, the views of an image, the template, threshold and temperature."""
    processor = predictor.processor
    weights = weights_fingerprint(predictor.model.state_dict().items())
    cut = [predictor.threshold, predictor.temperature]
    return digest([weights, asdict(processor.views), asdict(processor.tokens.template), *cut])


def _check_apart(source: Path, inputs: Sequence[InputFile], out: Path) -> None:
    """Results among the input would be input of the next call."""
    place = out.resolve()
    if source.is_dir() and (place == source.resolve() or source.resolve() in place.parents):
        raise UserError(f"--out {out} lies inside {source}, which is input; choose another folder")
    inside = next((item for item in inputs if place in item.path.resolve().parents), None)
    if inside is not None:
        raise UserError(f"--out {out} holds the input {inside.path}; choose another folder")


class _Run:
    """One call: reads, predicts and writes batch after batch."""

    def __init__(
        self,
        predictor: Predictor,
        fingerprint: str,
        results: ResultFolder,
        inputs: Sequence[InputFile],
        options: PredictOptions,
    ) -> None:
        known = {file: str(entry["name"]) for file, entry in results.entries.items()}
        tags = phrase_tags(options.phrases)
        self._names = name_outputs([item.file for item in inputs], tags, known)
        self._writer = ResultWriter(results.out, options.phrases, options.save)
        self._predictor, self._fingerprint, self._results = predictor, fingerprint, results
        self._inputs, self._options = inputs, options
        self._predicted, self._skipped = 0, 0
        self._failed: list[tuple[str, str]] = []

    def run(self) -> Outcome:
        bar = tqdm(total=len(self._inputs), desc="predicting", unit="image", disable=None)
        with bar, ThreadPoolExecutor(_THREADS) as pool:
            waiting: list[ReadFile] = []
            for start in range(0, len(self._inputs), self._options.batch):
                chunk = self._inputs[start : start + self._options.batch]
                waiting += self._usable(list(pool.map(partial(read_file, is_finished=self._is_finished), chunk)), bar)
                while len(waiting) >= self._options.batch:
                    self._predict(_take(waiting, self._options.batch), pool, bar)
            while waiting:
                self._predict(_take(waiting, self._options.batch), pool, bar)
        return Outcome(self._predicted, self._skipped, tuple(self._failed))

    def _is_finished(self, item: InputFile, size: int, sha256: str) -> bool:
        return self._results.finished(item.file, size, sha256, self._fingerprint, self._options.deciding())

    def _usable(self, read: Sequence[ReadFile | None], bar: tqdm[Any]) -> Iterator[ReadFile]:
        for found in read:
            if found is None:
                self._skipped += 1
                bar.update()
            elif found.image is None:
                self._fail(found, found.error, bar)
            else:
                yield found

    def _predict(self, batch: Sequence[ReadFile], pool: ThreadPoolExecutor, bar: tqdm[Any]) -> None:
        start = time.perf_counter()
        predictions = self._predictions([found.image for found in batch if found.image is not None])
        seconds = (time.perf_counter() - start) / len(batch)
        work = [(found, prediction) for found, prediction in zip(batch, predictions) if prediction is not None]
        entries = pool.map(partial(self._write, seconds=seconds), *zip(*work)) if work else iter(())
        for found, prediction in zip(batch, predictions):
            entry = {"error": "does not fit into the device's memory, not even alone"}
            if prediction is not None:
                entry = next(entries)
            if "error" in entry:
                self._fail(found, entry["error"], bar)
                continue
            self._results.add(entry)
            self._predicted += 1
            bar.update()

    def _predictions(self, images: Sequence[Image.Image]) -> list[Prediction | None]:
        """One per image; None for one that does not fit into the device's memory even alone."""
        asked = [list(self._options.phrases)] * len(images)
        try:
            return list(self._predictor.predict(images, asked, self._options.threshold))
        except torch.OutOfMemoryError:
            if len(images) == 1:
                return [None]
        return [self._predictions([image])[0] for image in images]

    def _write(self, found: ReadFile, prediction: Prediction, seconds: float) -> Entry:
        assert found.image is not None
        start, name = time.perf_counter(), self._names[found.source.file]
        try:
            outputs = self._writer.write(name, found.image, found.source.path, prediction)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            return {"error": "its name is too long for the file system once the phrase is added; shorten it"}
        entry = {
            **self._about(found),
            "width": found.image.width,
            "height": found.image.height,
            "notes": list(found.notes),
            "model": self._fingerprint,
            "options": self._options.deciding(),
            "threshold": prediction.threshold,
            "share": round(float(prediction.masks.any(axis=0).mean()), 6),
            "objects": describe_objects(prediction),
            "outputs": outputs,
        }
        if "coco" in self._options.save:
            entry["codes"] = run_length_codes(prediction)
        entry["seconds"] = round(seconds + time.perf_counter() - start, 4)
        return entry

    def _fail(self, found: ReadFile, reason: str, bar: tqdm[Any]) -> None:
        self._results.add({**self._about(found), "error": reason})
        self._failed.append((found.source.file, reason))
        bar.update()

    def _about(self, found: ReadFile) -> Entry:
        file = found.source.file
        return {"file": file, "name": self._names[file], "bytes": found.size, "sha256": found.sha256}


def _take(waiting: list[ReadFile], count: int) -> list[ReadFile]:
    """The first files off the list: at most count, and no more than one if they are large."""
    batch: list[ReadFile] = []
    pixels = 0
    while waiting and len(batch) < count:
        image = waiting[0].image
        assert image is not None
        pixels += image.width * image.height
        if batch and pixels > _BATCH_PIXELS:
            break
        batch.append(waiting.pop(0))
    return batch
