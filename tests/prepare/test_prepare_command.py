"""`vesselseg prepare` and `vesselseg synthetic` as a user runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.command_line import completed_command
from tests.labelme_files import WriteLabel, polygon
from vesselseg.dataset.manifest import read_manifest, read_splits


@pytest.fixture
def source(tmp_path: Path, write_label: WriteLabel, square: dict[str, Any]) -> Path:
    for number in range(6):
        write_label(tmp_path / "s", f"p{number}", [square, polygon([[1, 1], [9, 1], [9, 9]], "stenosis")])
    return tmp_path / "s"


def test_summary_and_exit_status_zero(source: Path, tmp_path: Path) -> None:
    done = completed_command("prepare", source, "--out", tmp_path / "o", "--split", "0.5,0.5,0", "--seed", 3)
    assert done.returncode == 0, done.stderr
    assert "6 images, 6 objects from 12 shapes" in done.stdout
    assert "findings: 0" in done.stdout
    assert "all 2 read as 'blood vessel'" in done.stdout
    assert {name: len(names) for name, names in read_splits(tmp_path / "o").items()} == {
        "train": 3,
        "val": 3,
        "test": 0,
    }
    assert "6/6" in done.stderr  # the progress bar


def test_label_map(source: Path, tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text(
        "vessel: coronary artery\nstenosis: null\nstenosys: narrowing\n", encoding="utf-8"
    )
    done = completed_command("prepare", source, "--out", tmp_path / "o", "--labels", tmp_path / "map.yaml")
    assert done.returncode == 0, done.stderr
    assert "'stenosys', which no file uses; did you mean 'stenosis'?" in done.stdout
    assert read_manifest(tmp_path / "o")[0].phrases == ("coronary artery",)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing"], "does not exist"),
        (["s", "--split", "1,2"], "add up to 1"),
        (["s", "--labels", "none.yaml"], "none.yaml"),
        (["s", "--labels", "bad.yaml"], "expected a phrase or null"),
        (["s", "--labels", "list.yaml"], "expected lines like"),
        (["s", "--group-regex", "(("], "not a regular expression"),
        (["s/p0.json"], "neither a .zip nor a .tar"),
        (["s", "--strict"], "--strict allows none"),
        (["s", "--out", "file"], "exists and is not a plain folder"),
        (["s", "--out", "file/below"], "file"),
    ],
)
def test_invalid_input_gives_one_message_and_status_two(
    source: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "bad.yaml").write_text("vessel: 3\nyes: x\n", encoding="utf-8")
    (tmp_path / "list.yaml").write_text("- vessel\n", encoding="utf-8")
    (tmp_path / "file").write_text("x")
    if "--strict" in arguments:
        (source / "broken.json").write_text("{")
    names = {"missing", "s", "s/p0.json", "none.yaml", "bad.yaml", "list.yaml", "file", "file/below"}
    paths = [str(tmp_path / word) if word in names else word for word in arguments]
    done = completed_command("prepare", "--quiet", "--out", tmp_path / "o", *paths)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "o").exists()


def test_synthetic_command(tmp_path: Path) -> None:
    arguments = ("--out", tmp_path / "d", "--count", 5, "--size", 96, "--frames", 2, "--quiet")
    done = completed_command("synthetic", *arguments)
    assert done.returncode == 0, done.stderr
    assert "5 pictures of 3 patients" in done.stdout
    assert len(list((tmp_path / "d").iterdir())) == 10
    again = completed_command("synthetic", *arguments)
    assert again.returncode == 2
    assert again.stderr.startswith("error: ")
    assert "not empty" in again.stderr
