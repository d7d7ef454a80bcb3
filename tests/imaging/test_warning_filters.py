"""Warnings and log messages of libraries, which quote headers, do not reach the user."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from tests.imaging.dicom_files import frames, write_dicom
from tests.machine_speed import patience
from vesselseg.imaging import dicom as dicom_module
from vesselseg.imaging.dicom_series import read_series_position
from vesselseg.imaging.warning_filters import suppress_warnings


def test_pydicom_shows_no_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    write_dicom(tmp_path / "a.dcm", frames(), PatientBirthDate="", PixelSpacing=[0.1, 0.1])
    content = (tmp_path / "a.dcm").read_bytes()
    (tmp_path / "a.dcm").write_bytes(content.replace(b"0.1\\0.1", b"abc\\0.1"))
    assert dicom_module.read_frame(tmp_path / "a.dcm").spacing is None
    assert not recwarn.list


def test_header_text_is_not_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """pydicom logs its warnings, and the service writes a log."""
    with pytest.warns(UserWarning, match="'doe'"):
        write_dicom(tmp_path / "a.dcm", frames(), SeriesInstanceUID="doe")
    with pytest.warns(UserWarning, match="'doe'"):
        assert dcmread(tmp_path / "a.dcm").SeriesInstanceUID == "doe"
    place = read_series_position(tmp_path / "a.dcm")
    assert place is not None and place.series == "doe" and not caplog.records


def test_warnings_are_suppressed_until_the_last_thread_leaves(recwarn: pytest.WarningsRecorder) -> None:
    """The thread that enters first leaves first; warnings are shown again after the last one."""
    first_is_in, second_is_in, first_is_out = (threading.Event() for _ in range(3))
    shown, hidden = list(warnings.filters), list[Any]()

    def first() -> None:
        with suppress_warnings():
            first_is_in.set()
            assert second_is_in.wait(patience(60))
        first_is_out.set()

    def second() -> None:
        assert first_is_in.wait(patience(60))
        with suppress_warnings():
            second_is_in.set()
            assert first_is_out.wait(patience(60))
            warnings.warn("quoted", stacklevel=1)
            hidden.append(list(warnings.filters) != shown)

    with ThreadPoolExecutor(2) as pool:
        for work in [pool.submit(first), pool.submit(second)]:
            work.result()
    assert hidden == [True] and not recwarn.list and list(warnings.filters) == shown
