"""No result depends on the locale: names of files come out as the bytes that they were."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.labelme_files import WriteLabel, polygon
from tests.prepare.conftest import write_label  # noqa: F401 - a fixture
from tests.shared_cases import case
from vesselseg.imaging.source_files import printable

REPOSITORY = Path(__file__).resolve().parents[1]
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def prepared_names(source: Path, out: Path, environment: dict[str, str]) -> list[str]:
    command = [sys.executable, "-m", "vesselseg", "prepare", str(source), "--out", str(out), "--quiet"]
    paths = {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, env={**os.environ, **paths, **environment}, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return sorted(record["image"] for record in json.loads((out / "annotations.json").read_text(encoding="utf-8")))


@pytest.mark.process
def test_names_do_not_depend_on_the_locale(tmp_path: Path, write_label: WriteLabel) -> None:  # noqa: F811
    for stem in ("血1", "é", "plain"):
        write_label(tmp_path / "s", stem, [polygon([[4, 6], [14, 6], [14, 16]])])
    assert prepared_names(tmp_path / "s", tmp_path / "o", ASCII) == ["plain.png", "é.png", "血1.png"]


@pytest.mark.process
def test_the_case(tmp_path: Path) -> None:
    source = case("locale_not_utf8") / "source"
    names = prepared_names(source, tmp_path / "o", ASCII)
    assert names == sorted(path.name for path in source.glob("*.png"))


@pytest.mark.parametrize("name", ["血.png", "a\udcff.png", "\ud800.png", "\ufffd", ""])
def test_printable_names_stay_as_they_are(name: str) -> None:
    once = printable(name)
    assert printable(once) == once and once.encode("utf-8").decode("utf-8") == once
