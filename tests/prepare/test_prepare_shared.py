"""Preparation of real LabelMe files: an archive of annotators, vessel clips, files of many versions."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from tests.labelme_files import found, run
from vesselseg.dataset.manifest import read_manifest, read_split


@pytest.mark.slow
@pytest.mark.shared
def test_archive_of_a_labelling_team(shared: Path, tmp_path: Path) -> None:
    archive = shared / "data" / "Segment_DATA_Merged_512.tar.gz"
    report = run(archive, tmp_path / "o", test_regex=r"/val_\d+", workers=2)
    assert report["counts"]["images"] == 100
    assert report["counts"]["shapes"] == 514
    assert report["counts"]["files_left_out"] == 0
    assert report["findings_by_code"] == {"too_few_points": 2, "rescaled": 40}
    with tarfile.open(archive) as opened:
        contents = {
            member.name: json.load(opened.extractfile(member)) for member in opened if member.name.endswith(".json")
        }  # type: ignore[arg-type]
    broken = {
        (name, index, "too_few_points")
        for name, content in contents.items()
        for index, shape in enumerate(content["shapes"])
        if len(shape["points"]) < 3
    }
    rescaled = {(name, None, "rescaled") for name, content in contents.items() if content["imageWidth"] == 800}
    assert (len(broken), len(rescaled)) == (2, 40)
    assert found(report) == broken | rescaled
    test = read_split(tmp_path / "o", "test")
    assert len(test) == 20
    assert all(record.image.startswith("val_") for record in test)
    points = [v for r in read_manifest(tmp_path / "o") for regions in r.regions for region in regions for v in region]
    assert max(points) <= 513


@pytest.mark.shared
def test_lymphatic_files_by_clip(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "lymphatic_labelme" / "annotated"
    report = run(source, tmp_path / "o", group_regex=r"^[^/]+/[^/]+")
    assert report["findings_by_code"] == {"empty_split": 1}
    assert Counter(record.group.split("/")[0] for record in read_manifest(tmp_path / "o")) == {"Human": 4, "Rat": 4}
    assert len(report["unlabelled"]) == 1
    assert report["unlabelled"][0].endswith("08_40_851.png")


@pytest.mark.shared
def test_every_labelme_example(shared: Path, tmp_path: Path) -> None:
    report = run(shared / "data" / "labelme_examples", tmp_path / "o", line_width=3.0)
    entries = json.loads((shared / "data" / "labelme_examples" / "manifest.json").read_text(encoding="utf-8"))
    assert report["counts"]["images"] == len(entries)
    assert report["counts"]["shapes"] == sum(entry["n_shapes"] for entry in entries)
    assert {code for _, _, code in found(report)} <= {"not_labelme", "duplicate_image", "clipped", "other_stem"}
    assert ("manifest.json", None, "not_labelme") in found(report)
