"""A dataset folder with measurements of every image, the input of the checks."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vesselseg.dataset.manifest import SPLITS, Record, fingerprint, read_manifest, read_splits
from vesselseg.inspect.checks.finding_kinds import OUTLIER
from vesselseg.inspect.checks.measure_image import ImageStatistics, measure_image
from vesselseg.machine import available_cores

Track = Callable[[Iterable[ImageStatistics], int], Iterable[ImageStatistics]]
_PARALLEL_FROM = 48  # images; with fewer, starting a process pool takes longer than it saves


@dataclass(frozen=True)
class MeasuredDataset:
    """records, facts: in the order of annotations.json. splits: image names per split, as in splits.json."""

    folder: Path
    fingerprint: str
    records: Sequence[Record]
    splits: dict[str, list[str]]
    facts: Sequence[ImageStatistics]

    @cached_property
    def splits_of(self) -> dict[str, tuple[str, ...]]:
        """Image -> the splits that list it."""
        found: dict[str, tuple[str, ...]] = {record.image: () for record in self.records}
        for split in SPLITS:
            for image in self.splits[split]:
                found[image] = (*found.get(image, ()), split)
        return found

    @cached_property
    def usable(self) -> list[int]:
        """Indices of the usable images."""
        return [index for index, facts in enumerate(self.facts) if facts.problem is None]

    def images(self, indices: Iterable[int]) -> tuple[str, ...]:
        """Names of the images with these indices."""
        return tuple(self.records[index].image for index in indices)

    def splits_at(self, indices: Iterable[int]) -> set[str]:
        """The splits of the images with these indices."""
        return {split for image in self.images(indices) for split in self.splits_of[image]}

    def describe(self, index: int) -> str:
        """An image with its splits and group, for messages."""
        record = self.records[index]
        known = [", ".join(self.splits_of[record.image]) or "no split"] + ([record.group] if record.group else [])
        return f"{record.image} ({', '.join(known)})"


def measure_dataset(folder: Path, workers: int = 0, track: Track = lambda facts, _: facts) -> MeasuredDataset:
    """Measure every image of a dataset folder or fold. workers: processes, 0 for all cores.

    track: wraps the iterable of results and their number, to show progress. Raises ManifestError if annotations.json or
    splits.json cannot be read; unreadable images are results with a problem.
    """
    records, splits = read_manifest(folder), read_splits(folder)
    work = partial(measure_image, folder=Path(folder))
    count = min(workers or available_cores(), len(records))
    if count <= 1 or len(records) < _PARALLEL_FROM:
        facts = list(track(map(work, records), len(records)))
    else:
        with ProcessPoolExecutor(count, initializer=_ignore_interrupt) as pool:
            try:
                facts = list(track(pool.map(work, records, chunksize=8), len(records)))
            finally:
                pool.shutdown(cancel_futures=True)
    return MeasuredDataset(Path(folder), fingerprint(folder), records, splits, facts)


def robust_z_scores(values: Sequence[float], least_spread: float) -> NDArray[np.float64]:
    """Modified z-scores, 0.6745 x (value - median) / MAD (Iglewicz and Hoaglin 1993), one per value.

    least_spread: lower bound of the MAD, so that small differences among nearly equal values do not count.
    All 0 for fewer than 8 values, too few for a distribution.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 8:
        return np.zeros(len(array))
    deviation = array - np.median(array)
    scores: NDArray[np.float64] = 0.6745 * deviation / max(float(np.median(np.abs(deviation))), least_spread)
    return scores


def is_outlier(score: float) -> bool:
    """Whether a modified z-score exceeds OUTLIER in absolute value."""
    return abs(score) > OUTLIER


def summary_of_splits(measured: MeasuredDataset) -> list[dict[str, Any]]:
    """One row per split: images, groups, formats, and means of brightness, contrast and vessel fraction."""
    place_of = {record.image: index for index, record in enumerate(measured.records)}
    lines = []
    for split in SPLITS:
        indices = [place_of[image] for image in measured.splits[split] if image in place_of]
        facts = [measured.facts[index] for index in indices if measured.facts[index].problem is None]
        lines.append(
            {
                "split": split,
                "images": len(indices),
                "groups": len({measured.records[index].group_key for index in indices}),
                "looks": dict(_counted(one.image_format for one in facts)),
                "brightness": _mean([one.brightness for one in facts]),
                "contrast": _mean([one.contrast for one in facts]),
                "share": _mean([one.share for one in facts]),
            }
        )
    return lines


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _counted(names: Iterable[str]) -> list[tuple[str, int]]:
    listed = list(names)
    return sorted(((name, listed.count(name)) for name in set(listed)), key=lambda item: (-item[1], item[0]))


def _ignore_interrupt() -> None:
    """Ctrl-C is sent to all processes; only the parent handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
