"""benchmarks/train_step.py: every row of its table trains, at tiny shapes on the CPU."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
from typing import Any

import pytest

from benchmarks.runs import REPOSITORY
from benchmarks.train_step import ROWS, Row, read_rows
from tests.fork_server import python


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Name -> outcome of every row, from one process: DeepSpeed keeps a process group for good."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [python(), "-m", "tests.benchmarks.train_rows", str(tmp_path_factory.mktemp("rows"))]
    environment = {**os.environ, "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"name"')]
    return {one["name"]: one for one in found}


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("row", [row for rows in read_rows(ROWS).values() for row in rows], ids=lambda row: row.name)
def test_a_row_trains(row: Row, outcomes: dict[str, dict[str, Any]]) -> None:
    found = outcomes[row.name]
    assert found["error"] is None, found["error"]
    assert len(found["losses"]) == 1 and math.isfinite(found["losses"][0]) and found["losses"][0] > 0
    assert found["checkpoint"] is row.checkpoint
