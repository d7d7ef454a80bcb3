"""Find identical and similar images: perceptual hashes select candidates, correlated textures confirm them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from vesselseg.inspect.checks.finding_kinds import NEAR_CORRELATION, NEAR_DISTANCE

TRANSFORMS = ("", "mirrored left to right", "mirrored top to bottom", "rotated by 180 degrees")
_ROWS = 512  # images compared with all others in one matrix product
_PAIRS = 8192  # pairs whose textures are correlated at once


@dataclass(frozen=True)
class SimilarPair:
    """Two similar images.

    first, second: indices. correlation: of the textures, at most 1. distance: differing bits of the hashes.
    transform: of the second image, one of TRANSFORMS.
    """

    first: int
    second: int
    correlation: float
    distance: int
    transform: str


def identical_images(digests: Sequence[str]) -> list[list[int]]:
    """Indices of images with the same digest, for each digest of two or more images; empty digests are skipped."""
    same = defaultdict(list)
    for index, digest in enumerate(digests):
        if digest:
            same[digest].append(index)
    return [indices for indices in same.values() if len(indices) > 1]


def similar_pairs(hashes: NDArray[np.bool_], textures: NDArray[np.float32]) -> list[SimilarPair]:
    """Pairs of similar images, each once with its best correlation, in descending order of correlation.

    hashes: (images, 4, bits), textures: (images, side, side), as in `ImageStatistics`.
    """
    best: dict[tuple[int, int], SimilarPair] = {}
    transformed = textures, textures[:, :, ::-1], textures[:, ::-1], textures[:, ::-1, ::-1]
    plain = textures.reshape(len(textures), -1)
    for number, mirrored in enumerate(transformed):
        other = np.ascontiguousarray(mirrored).reshape(len(mirrored), -1)
        for first, second, distance in _candidates(hashes[:, 0], hashes[:, number]):
            correlation = np.einsum("ij,ij->i", plain[first], other[second])  # (pairs,)
            for index in np.flatnonzero(correlation >= NEAR_CORRELATION):
                key = int(first[index]), int(second[index])
                pair = SimilarPair(*key, min(1.0, float(correlation[index])), int(distance[index]), TRANSFORMS[number])
                if key not in best or pair.correlation > best[key].correlation:
                    best[key] = pair
    return sorted(best.values(), key=lambda pair: (-pair.correlation, pair.first, pair.second))


def clusters(images: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Indices of images that pairs connect directly or indirectly, per connected component. images: their number."""
    edges = np.array(list(pairs), dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(images, images))
    _, labels = connected_components(graph, directed=False)
    members = defaultdict(list)
    for index in np.unique(edges):
        members[int(labels[index])].append(int(index))
    return list(members.values())


def _candidates(
    hashes: NDArray[np.bool_], others: NDArray[np.bool_]
) -> Iterable[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Yield (first, second, distance), each (pairs,), of candidates first < second with close hashes.

    hashes, others: (images, bits).
    """
    # Hamming distance by a matrix product: with bits as -1 and 1, it is (bits - dot product) / 2.
    signs, other_signs = (np.where(bits, 1, -1).astype(np.float32) for bits in (hashes, others))
    bits = signs.shape[1]
    for start in range(0, len(signs), _ROWS):
        distance = (bits - signs[start : start + _ROWS] @ other_signs.T) / 2
        rows, second = np.nonzero(distance <= NEAR_DISTANCE)
        later = second > rows + start
        rows, second = rows[later], second[later]
        for part in range(0, len(rows), _PAIRS):
            chosen = slice(part, part + _PAIRS)
            found = distance[rows[chosen], second[chosen]].astype(np.int64)
            yield rows[chosen] + start, second[chosen], found
