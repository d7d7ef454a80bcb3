"""No output byte, file name or terminal output contains a name, id or date of a patient."""

from __future__ import annotations

import csv
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tests.imaging.dicom_files import frames, write_dicom
from tests.labelme_files import WriteLabel, polygon, run, tree
from tests.prepare.label_formats import WRITERS, picture, truth, write_masks
from vesselseg.dataset.manifest import read_manifest, read_splits
from vesselseg.errors import UserError
from vesselseg.prepare.pseudonymise import Pseudonymiser

MASK = truth("p1_a")
# What must not be found again, in the headers and names of the source. A short one needs a letter beyond F: written are
# random names in hexadecimal digits.
SECRETS = (
    "Zhang",
    "SanFeng",
    "ID4711",
    "19480229",
    "1948-02-29",
    "20240131",
    "StMary",
    "DrHouse",
    "ACC99Q",
    "9.8.7.6.5",
)
HEADER = {
    "PatientName": "Zhang^SanFeng",
    "PatientID": "ID4711",
    "PatientBirthDate": "19480229",
    "StudyDate": "20240131",
    "InstitutionName": "StMary",
    "ReferringPhysicianName": "DrHouse",
    "AccessionNumber": "ACC99Q",
    "StudyInstanceUID": "9.8.7.6.5",
    "PatientComments": "Zhang born 1948-02-29",
}


def leaks(*places: Path) -> list[tuple[str, str]]:
    """(file, secret) for every secret in the name or any byte of the files, in the encodings that headers use."""
    found = []
    for place in places:
        for path in [place, *place.rglob("*")]:
            content = path.name.encode() + (path.read_bytes() if path.is_file() else b"")
            wanted = {(s, s.encode(code)) for s in SECRETS for code in ("utf-8", "utf-16-le", "utf-16-be")}
            found += [(path.name, secret) for secret, form in wanted if form.lower() in content.lower()]
    return found


@pytest.fixture
def hospital(tmp_path: Path, write_label: WriteLabel) -> Path:
    """Files whose headers, names, folders and metadata identify the patient; many are deliberately invalid."""
    root = tmp_path / "in" / "Zhang_SanFeng_19480229"
    study = root / "StMary" / "ID4711"
    write_dicom(study / "ID4711_20240131.dcm", frames(4), **HEADER)
    square = polygon([[4, 6], [14, 6], [14, 16], [4, 16]])
    names = ["ID4711_20240131_2", "ID4711_20240131_3", "ID4711_20240131_9", "ID4711_20240131"]
    for number, name in enumerate(names):
        write_label(study, name, [square, polygon([[1, 1]]), {"label": "vessel", "shape_type": "Zhang"}], picture=False,
                    imagePath=f"C:\\StMary\\Zhang_{number}.png", imageData="Zhang%%")  # fmt: skip
    for number in range(3):
        write_dicom(study / f"Zhang{number}.dcm", frames(seed=number, high=4095), bits=12, **HEADER)
        write_label(study, f"Zhang{number}", [square], picture=False)
    (study / "Zhang2.dcm").write_bytes((study / "Zhang2.dcm").read_bytes()[:-99])
    (study / "Zhang_broken.json").write_text('{"shapes": 3, "Zhang": 1}')
    write_label(study, "Zhang_gone", [square], picture=False, imagePath="StMary.png")
    exif = Image.Exif()
    exif[0x010E], exif[0x0112], exif[0x0132] = "Zhang", 6, "20240131"
    for number, kind in enumerate(("JPEG", "JPEG", "PNG")):
        suffix = ".jpg" if kind == "JPEG" else ".png"
        values = frames(seed=40 + number // 2)[0]
        write_label(study, f"SanFeng{number}", [square], picture=False, imagePath=f"SanFeng{number}{suffix}",
                    imageWidth=80, imageHeight=60)  # fmt: skip
        text = PngImagePlugin.PngInfo()
        text.add_text("Comment", "Zhang ID4711")
        options: dict[str, Any] = {"comment": b"DrHouse", "exif": exif} if kind == "JPEG" else {"pnginfo": text}
        Image.fromarray(values).save(study / f"SanFeng{number}{suffix}", **options)
        with (study / f"SanFeng{number}{suffix}").open("ab") as opened:
            opened.write(b"Zhang after the end")
    picture(study / "ID4711_unlabelled.png")
    return root


@pytest.mark.parametrize("workers", [1, 2])
def test_the_output_does_not_identify_the_patient(hospital: Path, tmp_path: Path, workers: int) -> None:
    shutil.copytree(hospital, hospital / "more" / "Zhang" / "again")
    before = tree(hospital)
    assert {secret for _, secret in leaks(hospital)} == set(SECRETS)
    out = tmp_path / "out"
    out.mkdir()
    report = run(hospital, out / "d", workers=workers)
    assert leaks(out) == []
    assert report["pseudonymised"] and report["source"] == "(not shown)"
    wanted = {"which_frame", "bad_dicom", "not_labelme", "no_image", "too_few_points", "unknown_type", "bad_image_data",
              "rescaled", "turned", "windowed", "clip", "duplicate_image"}  # fmt: skip
    assert wanted | {"bad_field"} >= set(report["findings_by_code"]) - {"empty_split"} >= wanted - {"unknown_type"}
    assert len(read_manifest(out / "d")) == 14
    assert tree(hospital) == before


def test_regular_expressions_match_original_names_and_are_not_written(hospital: Path, tmp_path: Path) -> None:
    options = {"group_regex": r"(Zhang|SanFeng)\d", "test_regex": "SanFeng", "pseudonymise": True}
    report = run(hospital, tmp_path / "out" / "d", **options)
    assert leaks(tmp_path / "out") == []
    assert report["options"]["test_regex"] == report["group_rule"] == "(not shown)"
    groups = {record.image: record.group for record in read_manifest(tmp_path / "out" / "d")}
    test = read_splits(tmp_path / "out" / "d")["test"]
    assert len(test) == 3 and len({groups[name] for name in test}) == 1


def test_errors_that_list_findings_contain_no_names(hospital: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        run(hospital, tmp_path / "out" / "d", strict=True)
    text = str(caught.value).replace(str(hospital), "")
    assert "--strict allows none" in text
    assert [secret for secret in SECRETS if secret in text] == []
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_can_be_pseudonymised(tmp_path: Path, name: str) -> None:
    root = tmp_path / "Zhang"
    root.mkdir()
    WRITERS[name][1](root)
    options = {"group_regex": r"(p\d)_", "fractions": (1.0, 0.0, 0.0)}
    run(root, tmp_path / "plain", **options)
    run(root, tmp_path / "out" / "d", pseudonymise=True, **options)
    assert leaks(tmp_path / "out") == []
    plain, hashed = read_manifest(tmp_path / "plain"), read_manifest(tmp_path / "out" / "d")
    assert [record.regions for record in plain] == [record.regions for record in hashed]
    assert all("p1" not in record.image + record.group for record in hashed)
    for one, other in zip(plain, hashed):
        pixels = [np.asarray(Image.open(folder / "images" / record.image))
                  for folder, record in ((tmp_path / "plain", one), (tmp_path / "out" / "d", other))]  # fmt: skip
        assert np.array_equal(*pixels)


def test_names_depend_on_the_salt_only(hospital: Path, tmp_path: Path) -> None:
    def names(out: str, salt: str) -> set[str]:
        run(hospital, tmp_path / out, salt=tmp_path / salt)
        return {record.image for record in read_manifest(tmp_path / out)}

    assert names("a", "one") == names("b", "one")
    assert not names("c", "two") & names("a2", "one")
    assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == 0o600
    assert len((tmp_path / "one").read_text().strip()) == 64


def test_the_salt_is_stored_next_to_the_folder_and_reused(hospital: Path, tmp_path: Path) -> None:
    out = tmp_path / "d"
    run(hospital, out)
    salt = (tmp_path / "d.salt").read_text()
    before = {record.image for record in read_manifest(out)}
    run(hospital, out, force=True)
    assert (tmp_path / "d.salt").read_text() == salt
    assert {record.image for record in read_manifest(out)} == before
    assert not any(salt.strip().encode() in path.read_bytes() for path in out.rglob("*") if path.is_file())


def test_key_table_maps_pseudonyms_to_names(hospital: Path, tmp_path: Path) -> None:
    run(hospital, tmp_path / "d", key_table=tmp_path / "keys" / "key.csv")
    with (tmp_path / "keys" / "key.csv").open(newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    known = {row["pseudonym"]: row for row in rows}
    for record in read_manifest(tmp_path / "d"):
        assert known[record.image.removesuffix(".png")]["kind"] == "file"
    patients = [row["name"] for row in rows if row["kind"] == "group"]
    assert len(patients) == 1 and "ID4711" in patients[0]
    assert stat.S_IMODE((tmp_path / "keys" / "key.csv").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"salt": "d/salt"}, "--salt .* is inside the dataset folder"),
        ({"key_table": "d/key.csv"}, "--key-table .* is inside the dataset folder"),
        ({"key_table": "in/Zhang_SanFeng_19480229/k.csv"}, "is inside the source"),
        ({"salt": "in/Zhang_SanFeng_19480229/s"}, "is inside the source"),
        ({"salt": "in"}, "is a folder"),
        ({"salt": "short"}, "3 characters; a salt needs at least 16"),
    ],
)
def test_invalid_locations_and_salts(hospital: Path, tmp_path: Path, options: dict[str, str], words: str) -> None:
    (tmp_path / "short").write_text("abc\n")
    before = tree(tmp_path)
    with pytest.raises(UserError, match=words):
        run(hospital, tmp_path / "d", **{name: tmp_path / path for name, path in options.items()})
    assert tree(tmp_path) == before


def test_no_salt_is_created_without_pseudonyms(tmp_path: Path) -> None:
    write_masks(tmp_path / "s")
    run(tmp_path / "s", tmp_path / "d")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "s"]


def test_a_pseudonym_is_keyed_and_stable(tmp_path: Path) -> None:
    (tmp_path / "salt").write_text("0123456789abcdef")
    names = Pseudonymiser(tmp_path / "salt")
    # printf 'group\nID4711' | openssl dgst -sha256 -hmac 0123456789abcdef
    assert names.group("ID4711") == "87481ebfe622abf6"
    assert names.file("ID4711") != names.group("ID4711")


@pytest.mark.slow
def test_the_terminal_shows_no_names(repository: Path, hospital: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(repository / "tools" / "prepare_data.py"), ".", "--out", str(tmp_path / "out" / "d")]
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=hospital, check=False)
    assert done.returncode == 0, done.stderr
    text = (done.stdout + done.stderr).replace(str(tmp_path), "")
    assert [secret for secret in SECRETS if secret in text] == []
    assert "text in the pictures themselves is not removed" in text
    assert json.loads((tmp_path / "out" / "d" / "report.json").read_text())["pseudonymised"]
