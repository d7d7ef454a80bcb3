"""--fix: planted problems are gone in the new folder; the old one is unchanged."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from tests.command_line import call_command
from tests.inspect.checks.conftest import Folder, brighter
from tests.inspect.checks.test_find import ALWAYS, PLANTS
from vesselseg.dataset.manifest import fingerprint
from vesselseg.inspect.checks.finding_kinds import KINDS
from vesselseg.prepare.folds import make_folds
from vesselseg.prepare.report import write_splits

REMAINS = {  # findings that need a decision
    "duplicate_masks_differ", "low_agreement", "little_vessel", "much_vessel", "specks", "blank_image", "new_format",
    "odd_format", "unusual_group", "split_drift", "empty_image", "not_in_a_split", ALWAYS,
}  # fmt: skip


def digest(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def fix(folder: Folder, *more: object) -> tuple[int, Folder]:
    new = folder.path.parent / "new"
    return call_command("check", folder.path, "--fix", new, "--quiet", "--workers", 1, *more), Folder(new)


@pytest.mark.parametrize("code", [code for code in PLANTS if code not in REMAINS])
def test_findings_with_a_clear_solution_are_fixed(folder: Folder, code: str) -> None:
    PLANTS[code][0](folder)
    before = digest(folder.path)
    status, new = fix(folder)
    assert status == 0
    assert set(new.codes()) == {ALWAYS}
    assert digest(folder.path) == before


@pytest.mark.parametrize("code", ["duplicate_masks_differ", "specks", "empty_image", "not_in_a_split"])
def test_findings_that_need_a_decision_remain(folder: Folder, code: str) -> None:
    PLANTS[code][0](folder)
    _, new = fix(folder)
    assert code in new.codes()


def test_everything_at_once(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    folder.add("copy.png", folder.image("p00_f0.png"), "test", like="p00_f0.png")
    folder.add("flipped.png", brighter(folder.image("p01_f0.png"))[::-1], "val", like="p01_f0.png")
    folder.add("other_truth.png", folder.image("p02_f0.png"), "test", like="p05_f0.png")
    folder.list("p03_f1.png", "test")
    folder.change("p04_f0.png", phrases=("Blood vessels",))
    (folder.path / "images" / "p06_f0.png").unlink()
    before = digest(folder.path)
    assert call_command("check", folder.path, "--out", folder.path.parent / "report", "--quiet") == 1
    capsys.readouterr()
    status, new = fix(folder)
    told = capsys.readouterr().out
    assert status == 0 and digest(folder.path) == before
    records, splits = new.records, new.splits
    assert set(folder.records) - set(records) == {"copy.png", "p06_f0.png"}
    assert {"p01_f0.png", "p01_f1.png", "flipped.png", "p03_f1.png", "other_truth.png", "p02_f0.png"} <= set(
        splits["train"]
    )
    assert records["flipped.png"].group == records["p01_f1.png"].group != records["p02_f0.png"].group
    assert {phrase for record in records.values() for phrase in record.phrases} == {"blood vessel"}
    assert sorted(image for images in splits.values() for image in images) == sorted(records)
    for said in ("left out copy.png", "left out p06_f0.png", "moved p03_f1.png to train", "into one group",
                 "'Blood vessels' became 'blood vessel' in 1 image", "to be inspected"):  # fmt: skip
        assert said in told
    report = json.loads((new.path / "report.json").read_text())
    assert report["fingerprint"] == fingerprint(new.path) and report["source_fingerprint"] == fingerprint(folder.path)
    page = (new.path / "check.html").read_text()
    assert all(change.replace("'", "&#39;") in page for change in report["changes"])
    for name in records:
        assert (new.path / "images" / name).read_bytes() == (folder.path / "images" / name).read_bytes()


def test_a_split_that_moving_would_empty_is_redrawn(folder: Folder) -> None:
    names = [name for name in folder.records if name.endswith("f0.png")]
    write_splits(folder.path, {"train": sorted(set(folder.records) - {names[0]}), "val": [], "test": [names[0]]})
    status, new = fix(folder)
    assert status == 0
    assert new.splits["train"] and new.splits["test"] and not new.splits["val"]
    assert set(new.codes()) == {ALWAYS}


def test_stored_folds_are_omitted(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    make_folds(folder.path, 4)
    _, new = fix(folder)
    assert not (new.path / "folds").exists() and "4 stored folds" in capsys.readouterr().out


def test_a_fold_can_be_checked(folder: Folder) -> None:
    make_folds(folder.path, 4)
    assert set(Folder(folder.path / "folds" / "3").codes()) == {ALWAYS}


@pytest.mark.parametrize("where", [".", "inside", "..", "images/../inside"])
def test_the_old_folder_is_never_modified(folder: Folder, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = digest(folder.path)
    status = call_command("check", folder.path, "--fix", folder.path / where, "--force", "--quiet")
    assert status == 2 and capsys.readouterr().err.startswith("error: ")
    assert digest(folder.path) == before


def test_page_and_json_contain_finding_location_and_reason(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    folder.list("p00_f0.png", "test")
    assert call_command("check", folder.path, "--quiet") == 1
    content = json.loads((folder.path / "check.json").read_text())
    first = content["findings"][0]
    assert (first["code"], first["severity"]) == ("group_in_two_splits", "serious")
    assert (
        set(first["images"]) == {"p00_f0.png", "p00_f1.png"} and "group p00: 1 in test, 1 in train" in first["reason"]
    )
    assert content["fingerprint"] == fingerprint(folder.path) and content["counts"]["serious"] == 2
    page = (folder.path / "check.html").read_text()
    kind = KINDS["group_in_two_splits"]
    assert all(text in page for text in (first["reason"], kind.title, kind.why, kind.fix))
    assert "http" not in page.replace("http://www.w3.org", "") and page.count("data:image/jpeg") >= 4
    assert "The same group in two splits (serious)" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["annotations.json", "splits.json"])
def test_invalid_input_has_exit_status_two(folder: Folder, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder.path / damage).write_text("{")
    assert call_command("check", folder.path, "--quiet") == 2
    assert damage in capsys.readouterr().err
    assert call_command("check", folder.path / "nowhere", "--quiet") == 2
    (folder.path / "check.html").write_text("x")
    assert call_command("check", folder.path, "--out", folder.path / "images", "--quiet") == 2


def test_an_empty_folder_of_records_is_checked(folder: Folder) -> None:
    (folder.path / "annotations.json").write_text("[]")
    assert set(folder.codes()) == {"unknown_in_split", "unused_file"}
    assert call_command("check", folder.path, "--fix", folder.path.parent / "n", "--quiet") == 2


def test_image_names_in_any_script(folder: Folder) -> None:
    folder.add("血管 ü<b>.png", np.roll(folder.image("p00_f0.png"), 3, axis=1), "test", like="p00_f0.png")
    assert call_command("check", folder.path, "--quiet") == 1
    page = (folder.path / "check.html").read_text(encoding="utf-8")
    assert "血管 ü&lt;b&gt;.png" in page and "ü<b>" not in page
