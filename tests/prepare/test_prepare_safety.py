"""Preparation never modifies the source, never leaves incomplete output, and rejects invalid requests."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.imaging.dicom_files import ABORTING
from tests.labelme_files import Shape, WriteLabel, found, polygon, run, tree
from vesselseg.dataset.manifest import read_manifest
from vesselseg.errors import UserError
from vesselseg.prepare import prepare_dataset as prepare_module


def test_strict_makes_findings_an_error_and_writes_nothing(
    source: Path, tmp_path: Path, write_label: WriteLabel, square: Shape
) -> None:
    run(source, tmp_path / "o", strict=True)
    write_label(source, "z", [square, polygon([[1, 1]])])
    with pytest.raises(UserError, match=r"1 finding\(s\).*--strict(.|\n)*z.json, shape 1: a polygon needs 3"):
        run(source, tmp_path / "p", strict=True)
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("kind", ["empty", "pictures", "broken"])
def test_nothing_usable_is_an_error_and_writes_nothing(tmp_path: Path, write_label: WriteLabel, kind: str) -> None:
    (tmp_path / "s").mkdir()
    if kind == "pictures":
        Image.new("L", (4, 4)).save(tmp_path / "s" / "a.png")
    if kind == "broken":
        write_label(tmp_path / "s", "a", [polygon([[1, 1]])])
    words = {"empty": "0 image", "pictures": "1 image", "broken": "nothing usable in 1 JSON"}[kind]
    with pytest.raises(UserError, match=words):
        run(tmp_path / "s", tmp_path / "data" / "o")
    assert list((tmp_path / "data").iterdir()) == []


def test_existing_output_is_only_replaced_with_force(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    run(source, out)
    before = tree(out)
    with pytest.raises(UserError, match="--force"):
        run(source, out)
    assert tree(out) == before
    (source / "p0_f0.json").unlink()
    run(source, out, force=True)
    assert len(read_manifest(out)) == 9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o", "source"]


def test_failure_keeps_the_old_output(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "o"
    run(source, out)
    before = tree(out)

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepare_module, "write_report_page", fail)
    with pytest.raises(OSError, match="No space"):
        run(source, out, force=True)
    assert tree(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o", "source"]


def test_the_old_output_is_restored_if_the_last_step_fails(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "o"
    run(source, out)
    before = tree(out)
    rename = Path.rename

    def fail_for_the_new_one(self: Path, target: Path) -> Path:
        if ".building-" in self.name and not self.name.endswith(".old"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with pytest.raises(OSError, match="Input/output"):
        run(source, out, force=True)
    assert tree(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o", "source"]


def test_force_does_not_replace_a_folder_other_than_a_dataset(source: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="not a dataset folder"):
        run(source, tmp_path / "home", force=True)
    assert (tmp_path / "home" / "letter.txt").exists()


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("source/data", r"is inside .*source, which is input"),
        ("source", r"is inside .*source, which is input"),
        (".", r"holds the input .*source"),
    ],
)
def test_output_and_source_may_not_contain_each_other(source: Path, tmp_path: Path, out: str, words: str) -> None:
    before = tree(source)
    with pytest.raises(UserError, match=words):
        run(source, tmp_path / out, force=True)
    assert tree(source) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"text": " "}, "--text"),
        ({"line_width": 0.0}, "--line-width"),
        ({"line_width": float("nan")}, "--line-width"),
        ({"group_regex": "(p"}, "--group-regex"),
        ({"val_regex": "["}, "--val-regex"),
        ({"test_regex": "nothing"}, "--test-regex nothing matches no file"),
        ({"max_gib": 0.0}, "--max-gib"),
    ],
)
def test_bad_options(source: Path, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        run(source, tmp_path / "o", **options)
    assert not (tmp_path / "o").exists()


def test_archive_and_folder_give_the_same_dataset(source: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(source, "top")
    run(source, tmp_path / "f")
    run(tmp_path / "a.tar.gz", tmp_path / "g")
    for name in ("annotations.json", "splits.json"):
        assert (tmp_path / "f" / name).read_bytes() == (tmp_path / "g" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "f", "g", "source"]


def test_archive_cannot_refer_to_images_outside(tmp_path: Path, write_label: WriteLabel, square: Shape) -> None:
    write_label(tmp_path / "in", "a", [square], picture=False, imagePath="../secret.png")
    write_label(tmp_path / "in", "b", [square])
    Image.new("L", (40, 30), 7).save(tmp_path / "secret.png")
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        archive.add(tmp_path / "in", ".")
    report = run(tmp_path / "a.tgz", tmp_path / "o")
    assert ("a.json", None, "no_image") in found(report)


@pytest.mark.process
def test_a_dicom_file_that_ends_its_decoder_is_listed(
    source: Path, tmp_path: Path, write_label: WriteLabel, square: Shape
) -> None:
    write_label(source, "z_bad", [square], picture=False, imagePath="z_bad.dcm")
    (source / "z_bad.dcm").write_bytes(ABORTING)
    report = run(source, tmp_path / "out")
    (finding,) = report["findings"]
    assert finding["code"] == "bad_dicom" and len(report["fractions"]) == 10
