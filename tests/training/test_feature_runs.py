"""Real trainings of two processes with stored features, one of them killed and resumed."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import Training, rows

pytestmark = pytest.mark.process

SHORT: dict[str, Any] = {
    "schedule__max_iters": 6,
    "checkpoint__interval": 2,
    "validation__interval": 4,
    "train_dataset__limit": 6,
}


def logged(work_dir: Path) -> list[tuple[Any, ...]]:
    """What a run learned, iteration by iteration, and its validations."""
    learned = [(row["iter"], row["loss"], row["grad_norm"] or 0.0) for row in rows(work_dir, "train")]
    return learned + [(row["iter"], row["dice"]) for row in rows(work_dir, "val")]


@pytest.fixture(scope="module")
def computed(training: Training, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoders run in every iteration, on pictures that repeat every two epochs."""
    work_dir = tmp_path_factory.mktemp("runs") / "computed"
    outcome = training.run(work_dir, train_dataset__variants=2, **SHORT)
    assert outcome.returncode == 0, outcome.stderr
    return work_dir


def test_a_killed_run_resumes_from_its_store_and_trains_like_others(
    training: Training, computed: Path, tmp_path: Path
) -> None:
    work_dir = tmp_path / "stored"
    features = {"features__store": "disk", "features__folder": tmp_path / "features", "features__variants": 2}
    killed = training.run(work_dir, train_dataset__dies_after=5, **features, **SHORT)
    assert killed.returncode == 128 + signal.SIGKILL, killed.stderr
    assert "features: 12 of 12 views to compute" in killed.stdout + killed.stderr
    (folder,) = (tmp_path / "features").iterdir()
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == 12
    files[0].write_bytes(files[0].read_bytes()[:5000])
    outcome = training.run(work_dir, "--resume", "auto", **features, **SHORT)
    assert outcome.returncode == 0, outcome.stderr
    assert "features: 1 of 12 views to compute" in outcome.stdout + outcome.stderr
    for found, expected in zip(logged(work_dir), logged(computed), strict=True):
        assert found == pytest.approx(expected, rel=1e-4), found


def test_features_in_memory_are_gone_when_the_run_is_done(training: Training, computed: Path, tmp_path: Path) -> None:
    """With weights in pieces (ZeRO-3), whose encoders stay where they are, and loading processes."""
    work_dir = tmp_path / "memory"
    outcome = training.run(
        work_dir,
        features__store="memory",
        features__variants=2,
        strategy__zero_optimization__stage=3,
        loader__num_workers=1,
        seed=os.getpid(),  # weights that no other run on this machine has, nor its features
        **SHORT,
    )
    assert outcome.returncode == 0, outcome.stderr
    printed = outcome.stdout + outcome.stderr
    folder = re.search(r"of 12 views to compute, kept in (/dev/shm/vesselseg_features_\S+)", printed)
    assert folder is not None and not Path(folder[1]).exists()
    assert [row["iter"] for row in rows(work_dir, "val")] == [row["iter"] for row in rows(computed, "val")]
