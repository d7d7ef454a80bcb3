"""Several sources of one dataset folder: corrections join old data and replace its labels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.labelme_files import WriteLabel, polygon, run
from tests.prepare.label_formats import HEIGHT, WIDTH, truth, write_coco, write_labelme, write_masks
from vesselseg.dataset.manifest import read_manifest
from vesselseg.dataset.record_masks import record_masks
from vesselseg.errors import UserError

ALL: dict[str, Any] = {"fractions": (1.0, 0.0, 0.0)}


def test_sources_of_different_formats_are_joined(tmp_path: Path, write_label: WriteLabel) -> None:
    write_coco(tmp_path / "a")
    write_label(tmp_path / "b", "more", [polygon([[4, 6], [14, 6], [14, 16]])])
    report = run([tmp_path / "a", tmp_path / "b"], tmp_path / "o", **ALL)
    assert (report["format"], report["findings"], report["unlabelled"]) == ("coco, labelme", [], [])
    assert report["source"] == f"{tmp_path / 'a'}, {tmp_path / 'b'}"
    names = sorted(record.image for record in read_manifest(tmp_path / "o"))
    assert names == ["a/train2017/p1_a.png", "a/train2017/p2_b.png", "b/more.png"]


def test_the_labels_of_the_last_source_are_used(tmp_path: Path) -> None:
    write_labelme(tmp_path / "old")
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    for stem in ("p1_a", "p2_b"):
        label = tmp_path / "new" / f"{stem}.json"
        if stem == "p2_b":
            label.unlink()
            continue
        content = json.loads(label.read_text())
        label.write_text(json.dumps({**content, "shapes": content["shapes"][:1]}))
    report = run([tmp_path / "old", tmp_path / "new"], tmp_path / "o", fill="coco", **ALL)
    assert report["findings_by_code"] == {"replaced": 1}
    assert report["unlabelled"] == ["new/p2_b.png"]
    records = {record.image: record for record in read_manifest(tmp_path / "o")}
    assert set(records) == {"new/p1_a.png", "old/p2_b.png"}
    assert 0 < record_masks(records["new/p1_a.png"], HEIGHT, WIDTH).sum() < truth("p1_a").sum()
    stored = sorted(path.relative_to(tmp_path / "o/images").as_posix() for path in (tmp_path / "o").rglob("*.png"))
    assert stored == sorted(records)


def test_archives_join_folders(tmp_path: Path) -> None:
    write_masks(tmp_path / "a")
    write_labelme(tmp_path / "packed")
    archive = Path(shutil.make_archive(str(tmp_path / "b"), "zip", tmp_path / "packed"))
    report = run([tmp_path / "a", archive], tmp_path / "o", **ALL)
    assert report["counts"]["images"] == 2 and report["findings_by_code"] == {"replaced": 2}
    for record in read_manifest(tmp_path / "o"):
        assert record.image.startswith("b/")
        assert np.array_equal(record_masks(record, HEIGHT, WIDTH)[0], truth(Path(record.image).stem))


def test_sources_with_one_name_are_told_apart(tmp_path: Path, write_label: WriteLabel) -> None:
    for place, stem in (("x", "a"), ("y", "b")):
        write_label(tmp_path / place / "data", stem, [polygon([[4, 6], [14, 6], [14, 16]])])
    run([tmp_path / "x/data", tmp_path / "y/data"], tmp_path / "o", **ALL)
    assert sorted(record.image for record in read_manifest(tmp_path / "o")) == ["data/a.png", "data_2/b.png"]


def test_sources_that_cannot_be_joined_are_refused(tmp_path: Path) -> None:
    write_labelme(tmp_path / "a")
    for sources, reason in (
        ([], "no source"),
        ([tmp_path / "a", tmp_path / "gone"], "gone does not exist"),
        ([tmp_path / "a", tmp_path / "a"], "would count twice"),
        ([tmp_path, tmp_path / "a"], "would count twice"),
    ):
        with pytest.raises(UserError, match=reason):
            run(sources, tmp_path.parent / f"{tmp_path.name}_o", **ALL)
