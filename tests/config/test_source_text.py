"""Configs in other encodings than UTF-8 are named for what they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from vesselseg.config.load import load_config
from vesselseg.config.source_text import check_text
from vesselseg.errors import ConfigError

TEXT = "# 血管\nseed = 1\n"


@pytest.mark.parametrize(
    ("encoding", "named"),
    [("utf-8-sig", "BOM"), ("gbk", "GBK .* line 1"), ("utf-16", "UTF-16")],
)
def test_other_encodings_are_named(tmp_path: Path, encoding: str, named: str) -> None:
    path = tmp_path / "c.py"
    path.write_bytes(TEXT.encode(encoding))
    with pytest.raises(ConfigError, match=named):
        load_config(path)


def test_bytes_of_no_encoding_are_told_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "c.py"
    path.write_bytes(b"seed = 1\nname = '\xff\xff'\n")
    with pytest.raises(ConfigError, match="neither UTF-8 nor GBK, at line 2"):
        check_text(path)
    path.write_bytes(TEXT.encode())
    check_text(path)
