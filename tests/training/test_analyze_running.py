"""vesselseg report training beside a training that goes on writing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.test_analyze_run import row, write_run
from vesselseg.training.logs.analysis import analyse
from vesselseg.training.logs.find_logs import read_log


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_checkpoint_that_is_removed_meanwhile_is_left_out(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, [row(20), row(40)])
    for name in ("iter_20.pth", "iter_40.pth"):
        (tmp_path / name).write_bytes(b"0")
    gone = tmp_path / "iter_20.pth"
    if kind == "folder":
        gone.unlink()
        gone.mkdir()
        (gone / "part.pt").write_bytes(b"0")
    log, method = read_log(tmp_path), "glob" if kind == "file" else "rglob"
    found = getattr(Path, method)

    def then_it_goes(folder: Path, pattern: str) -> list[Path]:
        listed = list(found(folder, pattern))
        (gone if kind == "file" else gone / "part.pt").unlink(missing_ok=True)
        return listed

    monkeypatch.setattr(Path, method, then_it_goes)
    assert [one.iteration for one in analyse("x", tmp_path, log).checkpoints] == [40]
