"""From an archive to a report through the tools, as a user runs them: a few pictures, a few iterations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.fork_server import on_path, python

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

ITERATIONS = 12
SETTINGS = [
    "schedule.micro_batch=2",
    "schedule.accumulation=2",
    f"schedule.max_iters={ITERATIONS}",
    "loader.num_workers=0",
]
MILESTONES = ["validation.interval=6", "checkpoint.interval=6", "model.sa2va.sam2.image_size=128"]


@dataclass(frozen=True)
class Shell:
    """Runs commands in the repository as a user does. python: the interpreter of tools; quick: of those before them."""

    repository: Path
    python: str
    quick: str
    environment: dict[str, str]

    def __call__(self, *command: str | Path) -> str:
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, cwd=self.repository, env=self.environment
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr


@pytest.fixture(params=["synthetic", pytest.param("angiograms", marks=pytest.mark.shared)])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def shell(kind: str, repository: Path) -> Shell:
    """One kind starts training, conversion and evaluation from nothing, as users do; the rest takes the fork server."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if kind == "synthetic":
        return Shell(repository, sys.executable, python(), environment)
    return Shell(repository, python(), python(), on_path(environment))


@pytest.fixture
def archive(kind: str, shell: Shell, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, list[str]]:
    """An archive with LabelMe files, and how it is to be split."""
    if kind == "synthetic":
        folder = tmp_path / "drawn"
        shell(shell.quick, "-m", "vesselseg", "synthetic", "--out", folder, "--count", "14", "--frames", "1")
        packed = tmp_path / "drawn.tar.gz"
        with tarfile.open(packed, "w:gz") as tar:
            tar.add(folder, "drawn")
        return packed, ["--split", "0.6,0.2,0.2"]
    whole = request.getfixturevalue("shared") / "data" / "Segment_DATA_Merged_512.tar.gz"
    return some_members(whole, tmp_path / "some.tar.gz"), ["--test-regex", "/val_", "--split", "0.75,0.25,0"]


def some_members(whole: Path, packed: Path) -> Path:
    """Eight training pictures and three of the other split, with their labels."""
    with tarfile.open(whole) as source, tarfile.open(packed, "w:gz") as target:
        members = sorted((m for m in source.getmembers() if m.isfile()), key=lambda member: member.name)
        stems = [m.name[:-5] for m in members if m.name.endswith(".json")]
        chosen = [s for s in stems if "/train_" in s][:8] + [s for s in stems if "/val_" in s][:3]
        for member in members:
            if member.name.rsplit(".", 1)[0] in chosen:
                target.addfile(member, source.extractfile(member))
    return packed


def test_archive_to_report(archive: tuple[Path, list[str]], shell: Shell, tmp_path: Path, tiny_base: Path) -> None:
    source, split = archive
    data, work, model, scores = (tmp_path / name for name in ("data", "run", "hf", "scores"))
    shell(shell.quick, "tools/prepare_data.py", source, "--out", data, *split, "--quiet")
    report = json.loads((data / "report.json").read_text())
    images = report["counts"]["images"] if "images" in report["counts"] else len(list((data / "images").rglob("*.png")))
    assert images >= 11

    options = [f"data_root={data}", f"model.sa2va.base={tiny_base}", *SETTINGS, *MILESTONES]
    train = ["bash", "tools/dist.sh", "train", "configs/tiny_cpu.py", "2", "--work-dir", work]
    shell(*train, "--cfg-options", *options)
    rows = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses and all(np.isfinite(losses))
    assert {"best.pth", f"iter_{ITERATIONS}.pth", "config.py"} <= {path.name for path in work.iterdir()}

    convert = [
        shell.python,
        "tools/convert_to_hf.py",
        work / "config.py",
        work / "best.pth",
        "--save-path",
        model,
    ]
    assert "differ by at most" in shell(*convert)

    score = [shell.python, "tools/eval.py", model, "--data", data, "--split", "test", "--out", scores]
    shell(*score, "--threshold", "auto")
    check_scores(scores, json.loads((data / "splits.json").read_text())["test"])


def check_scores(scores: Path, test: list[str]) -> None:
    """One row per image, every file promised, a report without outside resources."""
    results = json.loads((scores / "results.json").read_text())
    text = json.dumps(results)
    assert all(name in text for name in test)
    assert {"results.json", "results.csv", "report.html", "panels"} <= {path.name for path in scores.iterdir()}
    panels = list((scores / "panels").glob("*.png"))
    assert panels
    with Image.open(panels[0]) as panel:
        assert panel.width > 600
    page = (scores / "report.html").read_text()
    assert "data:image/png" in page
    assert 'src="http' not in page and 'href="http' not in page
