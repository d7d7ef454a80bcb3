"""A small dataset folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command_line import call_command


@pytest.fixture(scope="session")
def drawn_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by the commands themselves: six synthetic angiograms of two patients."""
    folder = tmp_path_factory.mktemp("drawn")
    assert call_command("synthetic", "--out", folder / "archive", "--count", 6, "--size", 96, "--quiet") == 0
    split = ("--split", "50,30,20", "--workers", 1, "--quiet")
    assert call_command("prepare", folder / "archive", "--out", folder / "data", *split) == 0
    return folder / "data"
