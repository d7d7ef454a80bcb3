"""A dataset folder as the checks see it: records, splits, and what was measured of every image."""

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
from vesselseg.inspect.checks.measure_image import ImageStatistics, measure
from vesselseg.machine import available_cores

Track = Callable[[Iterable[ImageStatistics], int], Iterable[ImageStatistics]]
_PARALLEL_FROM = 48  # images; below that a process pool takes longer to start than it saves


@dataclass(frozen=True)
class MeasuredDataset:
    """records and facts in the order of annotations.json; splits: image names, as splits.json has them."""

    folder: Path
    fingerprint: str
    records: Sequence[Record]
    splits: dict[str, list[str]]
    facts: Sequence[ImageStatistics]

    @cached_property
    def splits_of(self) -> dict[str, tuple[str, ...]]:
        """Image -> the splits that name it."""
        found: dict[str, tuple[str, ...]] = {record.image: () for record in self.records}
        for split in SPLITS:
            for image in self.splits[split]:
                found[image] = (*found.get(image, ()), split)
        return found

    @cached_property
    def usable(self) -> list[int]:
        """Places of the images that could be read."""
        return [place for place, facts in enumerate(self.facts) if facts.problem is None]

    def images(self, places: Iterable[int]) -> tuple[str, ...]:
        """Names of the records at these places."""
        return tuple(self.records[place].image for place in places)

    def sides(self, places: Iterable[int]) -> set[str]:
        """The splits that images at these places are in."""
        return {split for image in self.images(places) for split in self.splits_of[image]}

    def told(self, place: int) -> str:
        """An image with its split and group, for a sentence."""
        record = self.records[place]
        known = [", ".join(self.splits_of[record.image]) or "no split"] + ([record.group] if record.group else [])
        return f"{record.image} ({', '.join(known)})"


def read_dataset(folder: Path, workers: int = 0, track: Track = lambda facts, _: facts) -> MeasuredDataset:
    """Measure every image of a dataset folder or fold. workers: processes, 0 for all cores.

    Raises ManifestError where annotations.json or splits.json cannot be read; images that cannot are among the facts.
    """
    records, splits = read_manifest(folder), read_splits(folder)
    work = partial(measure, folder=Path(folder))
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
    """Modified z-scores, 0.6745 x (value - median) / MAD (Iglewicz and Hoaglin 1993); beyond OUTLIER is far out.

    least_spread: the MAD is taken as at least this, so that small differences among nearly equal values are none.
    All 0 for fewer than 8 values, too few to tell what is usual.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 8:
        return np.zeros(len(array))
    away = array - np.median(array)
    scores: NDArray[np.float64] = 0.6745 * away / max(float(np.median(np.abs(away))), least_spread)
    return scores


def is_outlier(score: float) -> bool:
    """Whether a robust score is beyond what is usual."""
    return abs(score) > OUTLIER


def summary_of_splits(measured: MeasuredDataset) -> list[dict[str, Any]]:
    """One line per split: images, groups, and means of what drifts."""
    place_of = {record.image: place for place, record in enumerate(measured.records)}
    lines = []
    for split in SPLITS:
        places = [place_of[image] for image in measured.splits[split] if image in place_of]
        facts = [measured.facts[place] for place in places if measured.facts[place].problem is None]
        lines.append(
            {
                "split": split,
                "images": len(places),
                "groups": len({measured.records[place].group_key for place in places}),
                "looks": dict(_counted(one.look for one in facts)),
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
    """Ctrl-C reaches all processes; the parent alone answers it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
