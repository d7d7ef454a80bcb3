"""Unit tests of hashes and correlation, outliers, phrase variants and agreement."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import cohen_kappa_score, f1_score

from tests.inspect.checks.conftest import Folder, brighter
from vesselseg.dataset.manifest import Record
from vesselseg.inspect.checks.measure_image import agreement_of, measure_image, texture
from vesselseg.inspect.checks.measured_dataset import is_outlier, measure_dataset, robust_z_scores
from vesselseg.inspect.checks.near_duplicates import TRANSFORMS, clusters, identical_images, similar_pairs
from vesselseg.inspect.checks.phrase_variants import find_variants, rename_phrases, replacements


def turn(pixels: np.ndarray, how: str) -> np.ndarray:
    return {
        TRANSFORMS[0]: pixels,
        TRANSFORMS[1]: pixels[:, ::-1],
        TRANSFORMS[2]: pixels[::-1],
        TRANSFORMS[3]: pixels[::-1, ::-1],
    }[how]


@pytest.mark.parametrize("how", TRANSFORMS)
def test_the_transform_of_a_copy_is_identified(folder: Folder, how: str) -> None:
    folder.add("z.png", turn(brighter(folder.image("p00_f0.png")), how), "train", like="p00_f0.png")
    facts = [measure_image(folder.records[name], folder.path) for name in ("p00_f0.png", "p03_f0.png", "z.png")]
    pairs = similar_pairs(np.stack([one.hashes for one in facts]), np.stack([one.texture for one in facts]))
    assert [(pair.first, pair.second, pair.transform) for pair in pairs] == [(0, 2, how)]
    assert pairs[0].correlation > 0.9


def test_texture_ignores_padding_and_brightness_but_not_content(folder: Folder) -> None:
    grey = folder.image("p00_f0.png")
    padded = np.pad(grey, 40)
    folder.add("padded.png", padded, "train", like="p00_f0.png")
    folder.add("other.png", np.pad(folder.image("p07_f0.png"), 40), "train", like="p00_f0.png")
    names = ("p00_f0.png", "padded.png", "other.png")
    one, same, other = (measure_image(folder.records[name], folder.path).texture.ravel() for name in names)
    assert one @ same > 0.95 and abs(same @ other) < 0.4


def test_an_image_without_structure_resembles_no_other() -> None:
    blank = texture(Image.new("L", (64, 64), 90))
    assert not blank.any()
    assert similar_pairs(np.ones((2, 4, 64), bool), np.stack([blank, blank])) == []


@pytest.mark.slow
def test_blockwise_pairs_equal_a_brute_force_search() -> None:
    draw = np.random.default_rng(0)
    base = draw.normal(size=(40, 32, 32))
    textures = base[draw.integers(0, 40, 700)] + 0.4 * draw.normal(size=(700, 32, 32))
    textures = (textures / np.linalg.norm(textures, axis=(1, 2), keepdims=True)).astype(np.float32)
    hashes = draw.random((700, 4, 64)) < 0.12
    found = {(pair.first, pair.second) for pair in similar_pairs(hashes, textures)}
    expected = set()
    for number in range(4):
        other = (textures, textures[:, :, ::-1], textures[:, ::-1], textures[:, ::-1, ::-1])[number]
        close = (hashes[:, None, 0] != hashes[None, :, number]).sum(axis=2) <= 16
        alike = np.einsum("aij,bij->ab", textures, other, optimize=True) >= 0.6
        expected |= {(int(a), int(b)) for a, b in np.argwhere(close & alike) if a < b}
    assert found == expected and len(found) > 20


def test_clusters_and_identical_images() -> None:
    assert sorted(map(sorted, clusters(7, [(0, 3), (3, 5), (1, 2)]))) == [[0, 3, 5], [1, 2]]
    assert clusters(3, []) == []
    assert identical_images(["a", "", "b", "a", ""]) == [[0, 3]]


def test_robust_z_scores() -> None:
    values = [10.0, 11.0, 9.0, 10.5, 9.5, 10.2, 9.8, 40.0]
    scores = robust_z_scores(values, 0.1)
    # by hand: the median is 10.1; distances .1 .9 1.1 .4 .6 .1 .3 29.9, their median .5
    assert scores[-1] == pytest.approx(0.6745 * 29.9 / 0.5)
    assert [is_outlier(score) for score in scores] == [False] * 7 + [True]
    assert not robust_z_scores(values[:7], 0.1).any()
    assert not any(map(is_outlier, robust_z_scores([5.0] * 20 + [5.3], 0.1)))


@pytest.mark.parametrize(
    ("counts", "code", "phrases", "sure"),
    [
        ({"vessel": 9, "Vessel": 2}, "label_variant", ("vessel", "Vessel"), True),
        ({"vessels": 9, "vessel": 2}, "label_variant", ("vessels", "vessel"), True),
        ({"left artery": 9, "left  arteries": 1}, "label_variant", ("left artery", "left  arteries"), True),
        ({"side-branch": 9, "side branches": 1}, "label_variant", ("side-branch", "side branches"), True),
        ({"blood vessel": 9, "bloodvessel": 1}, "label_typo", ("blood vessel", "bloodvessel"), True),
        ({"artery": 10, "atrery": 2}, "label_typo", ("artery", "atrery"), True),
        ({"artery": 9, "artey": 2}, "label_typo", ("artery", "artey"), False),
    ],
)
def test_phrase_variants(counts: dict[str, int], code: str, phrases: tuple[str, ...], sure: bool) -> None:
    found = find_variants(counts)
    assert [(one.code, one.phrases, one.is_certain) for one in found] == [(code, phrases, sure)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("left coronary artery", "right coronary artery"),
        ("segment 5", "segment 6"),
        ("LAD", "RAD"),
        ("internal carotid artery", "external carotid artery"),
        ("vein", "artery"),
        ("vessel", "blood vessel"),
        ("D1 branch", "D2 branch"),
        ("focus", "foci"),
    ],
)
def test_different_phrases(one: str, other: str) -> None:
    assert find_variants({one: 100, other: 1}) == []


def test_a_misspelt_variant_is_replaced_by_the_most_frequent_phrase() -> None:
    same = find_variants({"vessel": 50, "Vessel": 8, "vesel": 2, "Vesel": 1})
    assert replacements(same) == {"Vessel": "vessel", "vesel": "vessel", "Vesel": "vessel"}


def region(x: float) -> list[float]:
    return [x, 0.0, x + 1, 0.0, x + 1, 1.0]


@pytest.mark.parametrize(
    ("phrases", "kept", "regions"),
    [
        (("vessel", "Vessel"), ("vessel",), ((region(0), region(5)),)),
        (("Vessel", "catheter"), ("vessel", "catheter"), ((region(0),), (region(5),))),
        (("Vessel", "Vessel"), ("vessel", "vessel"), ((region(0),), (region(5),))),
        (("catheter", "wire"), ("catheter", "wire"), ((region(0),), (region(5),))),
    ],
)
def test_objects_with_replaced_phrases(phrases: Any, kept: Any, regions: Any) -> None:
    record = Record("a.png", ((region(0),), (region(5),)), phrases, observers={"2": ((region(1),), (region(6),))})
    new = rename_phrases(record, {"Vessel": "vessel"})
    assert (new.phrases, new.regions) == (kept, regions)
    shifted = tuple(tuple([x + 1 if i % 2 == 0 else x for i, x in enumerate(r)] for r in o) for o in regions)
    assert new.observers["2"] == shifted


def test_agreement_equals_scikit_learn() -> None:
    draw = np.random.default_rng(1)
    one, other = (draw.random((2, 60, 50)) < 0.1).astype(np.uint8)
    other[:30] = one[:30]
    dice, kappa = agreement_of(one, other)
    assert dice == pytest.approx(f1_score(one.ravel(), other.ravel()))
    assert kappa == pytest.approx(cohen_kappa_score(one.ravel(), other.ravel()))
    empty = np.zeros((4, 4), np.uint8)
    assert agreement_of(empty, empty) == (1.0, 1.0)
    assert agreement_of(empty, 1 - empty) == (0.0, 0.0)


@pytest.mark.slow
def test_processes_give_the_same_measurements(folder: Folder) -> None:
    for number in range(20):
        folder.add(f"x{number}.png", folder.image("p00_f0.png"), "train", like="p00_f0.png")
    one, two = (measure_dataset(folder.path, workers) for workers in (1, 2))
    assert [facts.pixels for facts in one.facts] == [facts.pixels for facts in two.facts]
    assert len(one.facts) == 52
