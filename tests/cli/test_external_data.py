"""An external test set: data without training and validation images is prepared and scored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.command_line import completed_command
from vesselseg.dataset.manifest import read_split


@pytest.mark.slow
def test_data_that_is_only_tested_on(tmp_path: Path) -> None:
    archive, data, predicted, scores = (tmp_path / name for name in ("archive", "data", "predicted", "scores"))
    assert completed_command("synthetic", "--out", archive, "--count", 3, "--size", 96, "--quiet").returncode == 0
    prepared = completed_command("prepare", archive, "--out", data, "--split", "0,0,1", "--workers", 1, "--quiet")
    assert "split: train 0, val 0, test 3" in prepared.stdout, prepared.stderr
    predicted.mkdir()
    for record in read_split(data, "test"):
        values = np.random.default_rng(0).integers(0, 65535, (96, 96)).astype(np.uint16)
        Image.fromarray(values).save(predicted / f"{Path(record.image).stem}.png")
    searched = completed_command("eval", predicted, "--data", data, "--out", scores, "--threshold", "auto")
    assert searched.returncode == 2 and not scores.exists()
    assert "use --threshold stored (here 0.5, default for a folder without predictions.json)" in searched.stderr
    stored = completed_command("eval", predicted, "--data", data, "--out", scores, "--threshold", "stored")
    assert stored.returncode == 0, stored.stderr
    assert json.loads((scores / "results.json").read_text())["threshold"]["value"] == 0.5
