"""Which pictures are the same, or nearly: perceptual hashes first, then the correlation of their textures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from vesselseg.inspect.checks.finding_kinds import NEAR_CORRELATION, NEAR_DISTANCE

TRANSFORMS = ("", "mirrored left to right", "mirrored top to bottom", "turned by 180 degrees")
_ROWS = 512  # images compared with all others at once
_PAIRS = 8192  # pairs whose textures are correlated at once


@dataclass(frozen=True)
class Pair:
    """Two images by their place. distance: bits of the hash that differ. turned: one of TRANSFORMS."""

    first: int
    second: int
    correlation: float
    distance: int
    turned: str


def identical_images(digests: Sequence[str]) -> list[list[int]]:
    """Places with the same digest, two or more of them; an empty digest equals none."""
    same = defaultdict(list)
    for place, digest in enumerate(digests):
        if digest:
            same[digest].append(place)
    return [places for places in same.values() if len(places) > 1]


def similar_pairs(hashes: NDArray[np.bool_], textures: NDArray[np.float32]) -> list[Pair]:
    """Pairs of pictures that look alike, each once with its best correlation.

    hashes: (images, 4, bits), textures: (images, side, side), as `ImageStatistics` has them.
    """
    best: dict[tuple[int, int], Pair] = {}
    mirrored = textures, textures[:, :, ::-1], textures[:, ::-1], textures[:, ::-1, ::-1]
    plain = textures.reshape(len(textures), -1)
    for number, turned in enumerate(mirrored):
        other = np.ascontiguousarray(turned).reshape(len(turned), -1)
        for first, second, distance in _alike(hashes[:, 0], hashes[:, number]):
            correlation = np.einsum("ij,ij->i", plain[first], other[second])
            for place in np.flatnonzero(correlation >= NEAR_CORRELATION):
                key = int(first[place]), int(second[place])
                pair = Pair(*key, min(1.0, float(correlation[place])), int(distance[place]), TRANSFORMS[number])
                if key not in best or pair.correlation > best[key].correlation:
                    best[key] = pair
    return sorted(best.values(), key=lambda pair: (-pair.correlation, pair.first, pair.second))


def clusters(images: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Places that pairs connect, directly or through others."""
    edges = np.array(list(pairs), dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(images, images))
    _, labels = connected_components(graph, directed=False)
    members = defaultdict(list)
    for place in np.unique(edges):
        members[int(labels[place])].append(int(place))
    return list(members.values())


def _alike(
    hashes: NDArray[np.bool_], others: NDArray[np.bool_]
) -> Iterable[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """(first, second, distance) of the pairs first < second whose hashes are close, some thousands at a time."""
    signs, turned = (np.where(bits, 1, -1).astype(np.float32) for bits in (hashes, others))
    bits = signs.shape[1]
    for start in range(0, len(signs), _ROWS):
        distance = (bits - signs[start : start + _ROWS] @ turned.T) / 2
        rows, second = np.nonzero(distance <= NEAR_DISTANCE)
        later = second > rows + start
        rows, second = rows[later], second[later]
        for part in range(0, len(rows), _PAIRS):
            chosen = slice(part, part + _PAIRS)
            found = distance[rows[chosen], second[chosen]].astype(np.int64)
            yield rows[chosen] + start, second[chosen], found
