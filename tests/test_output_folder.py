"""Files that appear whole or not at all, and output that must not touch its input."""

from __future__ import annotations

from pathlib import Path

import pytest

from vesselseg.errors import UserError
from vesselseg.output_folder import UNFINISHED, check_apart, replace_text, whole_file


def test_a_text_file_is_replaced_with_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("old")
    path.chmod(0o640)
    replace_text(path, "größer")
    assert path.read_bytes().decode("utf-8") == "größer"
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("durable", [False, True])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "config.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_file(path, durable=durable) as temporary:
        assert temporary == tmp_path / f"config.json{UNFINISHED}"
        temporary.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_output_inside_or_around_an_input_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    link = tmp_path / "link"
    link.symlink_to(data)
    for out in (data, data / "results", link / "results"):
        with pytest.raises(UserError, match=r"--out .* is inside .*data, which is input"):
            check_apart(out, [data])
    with pytest.raises(UserError, match=r"--fix .* holds the input .*data; choose another folder"):
        check_apart(tmp_path, [data], "--fix")
    check_apart(tmp_path / "data_2", [data])
