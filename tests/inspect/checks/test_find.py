"""Every kind of problem is found where it was planted, and nothing else; clean data have no findings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from tests.inspect.checks.conftest import SIDE, Folder, brighter
from vesselseg.dataset.manifest import write_manifest
from vesselseg.dataset.record_masks import record_masks
from vesselseg.imaging.rasterise import encode
from vesselseg.inspect.checks.finding_kinds import KINDS
from vesselseg.prepare.report import write_splits

ALWAYS = "near_duplicate_in_group"  # two frames of each patient
Plant = Callable[[Folder], set[str]]
PLANTS: dict[str, tuple[Plant, set[str]]] = {}


def plants(code: str, *also: str) -> Callable[[Plant], Plant]:
    """Register a function that plants a problem and returns the affected images. also: further codes it causes."""

    def keep(plant: Plant) -> Plant:
        PLANTS[code] = plant, set(also)
        return plant

    return keep


@plants("missing_image")
def missing(folder: Folder) -> set[str]:
    (folder.path / "images" / "p03_f0.png").unlink()
    return {"p03_f0.png"}


@plants("unreadable_image")
def cut_short(folder: Folder) -> set[str]:
    path = folder.path / "images" / "p03_f0.png"
    path.write_bytes(path.read_bytes()[:2000])
    return {"p03_f0.png"}


@plants("bad_region")
def mask_of_another_size(folder: Folder) -> set[str]:
    folder.change("p03_f0.png", regions=((encode(np.ones((5, 6), np.uint8)),),))
    return {"p03_f0.png"}


@plants("unknown_in_split")
def name_without_record(folder: Folder) -> set[str]:
    write_splits(folder.path, {**folder.splits, "val": [*folder.splits["val"], "ghost.png"]})
    return {"ghost.png"}


@plants("image_in_two_splits", "group_in_two_splits", "near_duplicate_across_splits")
def listed_twice(folder: Folder) -> set[str]:
    folder.list("p00_f0.png", "train", "test")
    return {"p00_f0.png"}


@plants("group_in_two_splits", "near_duplicate_across_splits")
def half_a_patient_tested(folder: Folder) -> set[str]:
    folder.list("p00_f0.png", "test")
    return {"p00_f0.png", "p00_f1.png"}


@plants("duplicate_across_splits")
def copy_on_the_other_side(folder: Folder) -> set[str]:
    folder.list("p00_f1.png", "train")
    folder.add("copy.png", folder.image("p00_f0.png"), "test", like="p00_f0.png")
    return {"copy.png", "p00_f0.png"}


@plants("near_duplicate_across_splits")
def mirrored_brighter_copy(folder: Folder) -> set[str]:
    folder.add("copy.png", brighter(folder.image("p00_f0.png"))[:, ::-1], "test", like="p07_f0.png")
    return {"copy.png", "p00_f0.png", "p00_f1.png"}


@plants("duplicate_masks_differ")
def two_truths(folder: Folder) -> set[str]:
    folder.add("copy.png", folder.image("p00_f0.png"), "train", like="p05_f0.png")
    return {"copy.png", "p00_f0.png"}


@plants("duplicate")
def copy_on_the_same_side(folder: Folder) -> set[str]:
    grey = folder.image("p00_f0.png")
    folder.add("copy.png", np.stack([grey] * 3, axis=2), "train", like="p00_f0.png")
    return {"copy.png", "p00_f0.png"}


@plants("near_duplicate_across_groups")
def a_patient_under_two_names(folder: Folder) -> set[str]:
    folder.change("p00_f0.png", group="zero")
    return {"p00_f0.png", "p00_f1.png"}


@plants("label_variant")
def another_spelling(folder: Folder) -> set[str]:
    folder.change("p01_f0.png", phrases=("Blood-Vessels",))
    return {"p01_f0.png"}


@plants("label_typo")
def a_letter_missing(folder: Folder) -> set[str]:
    folder.change("p01_f0.png", phrases=("blood vesel",))
    return {"p01_f0.png"}


@plants("low_agreement")
def an_observer_elsewhere(folder: Folder) -> set[str]:
    drawn = {name: record.regions for name, record in folder.records.items()}
    drawn["p01_f0.png"] = drawn["p05_f0.png"]
    folder.change_all({name: {"observers": {"2": regions}} for name, regions in drawn.items()})
    return {"p01_f0.png"}


@plants("little_vessel")
def only_a_stump(folder: Folder) -> set[str]:
    folder.change("p02_f1.png", regions=(([40.0, 40.0, 50.0, 40.0, 50.0, 44.0],),))
    return {"p02_f1.png"}


@plants("much_vessel")
def filled_by_mistake(folder: Folder) -> set[str]:
    folder.change("p02_f1.png", regions=(([5.0, 5.0, 120.0, 5.0, 120.0, 120.0, 5.0, 120.0],),))
    return {"p02_f1.png"}


@plants("empty_object")
def outside_the_picture(folder: Folder) -> set[str]:
    record = folder.records["p02_f1.png"]
    outside = ([500.0, 500.0, 520.0, 500.0, 520.0, 520.0],)
    folder.change(record.image, regions=(*record.regions, outside), phrases=(*record.phrases, "catheter"))
    return {record.image}


@plants("specks")
def a_slip_of_the_hand(folder: Folder) -> set[str]:
    record = folder.records["p02_f1.png"]
    folder.change(record.image, regions=((*record.regions[0], [2.0, 2.0, 3.0, 2.0, 2.0, 3.0]),))
    return {record.image}


@plants("blank_image", "unusual_group")
def nothing_to_see(folder: Folder) -> set[str]:
    folder.add("blank.png", np.full((SIDE, SIDE), 130, np.uint8), "train", like="p00_f0.png")
    return {"blank.png"}


@plants("new_format", "odd_format")
def another_size(folder: Folder) -> set[str]:
    names = {"p14_f0.png", "p14_f1.png"}
    for name in names:
        image = Image.fromarray(folder.image(name)).resize((SIDE + 8, SIDE + 8))
        image.save(folder.path / "images" / name)
    return names


@plants("odd_format")
def a_coloured_patient(folder: Folder) -> set[str]:
    names = {"p00_f0.png", "p00_f1.png"}
    for name in names:
        folder.repaint(name, lambda grey: np.stack([grey, grey // 2, grey], axis=2))
    return names


@plants("unusual_group")
def inverted(folder: Folder) -> set[str]:
    names = {"p00_f0.png", "p00_f1.png"}
    for name in names:
        folder.repaint(name, lambda grey: grey // 4)
    return names


@plants("split_drift")
def darker_tests(folder: Folder) -> set[str]:
    names = sorted(folder.records)[::2]  # one frame of each patient, half of them tested on
    write_manifest(folder.path, [folder.records[name] for name in names])
    write_splits(folder.path, {"train": names[::2], "val": [], "test": names[1::2]})
    for name in names[1::2]:
        folder.repaint(name, lambda grey: grey - np.minimum(grey, 60))
    for path in (folder.path / "images").glob("*_f1.png"):
        path.unlink()
    return set()


@plants("empty_image")
def no_vessel(folder: Folder) -> set[str]:
    folder.change("p02_f1.png", regions=((),))
    return {"p02_f1.png"}


@plants("not_in_a_split")
def forgotten(folder: Folder) -> set[str]:
    folder.list("p04_f0.png")
    folder.list("p04_f1.png")
    return {"p04_f0.png", "p04_f1.png"}


@plants("unused_file")
def left_behind(folder: Folder) -> set[str]:
    (folder.path / "images" / "notes.txt").write_text("x")
    return set()


def test_clean_data_have_no_findings(folder: Folder) -> None:
    assert set(folder.codes()) == {ALWAYS}


def test_every_kind_of_finding_is_tested() -> None:
    assert set(PLANTS) | {ALWAYS} == set(KINDS)


@pytest.mark.parametrize("code", PLANTS)
def test_a_planted_problem_is_the_only_finding(folder: Folder, code: str) -> None:
    plant, also = PLANTS[code]
    images = plant(folder)
    found = folder.codes()
    assert set(found) - {ALWAYS} == {code, *also}, found
    assert found[code] == images


def test_observers_that_agree_give_no_finding(folder: Folder) -> None:
    masks = {name: record_masks(record, SIDE, SIDE)[0] for name, record in folder.records.items()}
    shifted = {name: ((encode(np.roll(mask, 1, axis=1)),),) for name, mask in masks.items()}
    folder.change_all({name: {"observers": {"2": regions}} for name, regions in shifted.items()})
    assert set(folder.codes()) == {ALWAYS}
