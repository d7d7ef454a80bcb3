"""Drawn DICOM headers are displayed as by two independent readers, except where their difference is explained."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest

from tests.imaging.dicom_readers import HEADERS, READERS, Header, differences

ROUNDING = 1  # grey value; dcm2pnm cuts off where the others round


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("header", HEADERS, ids=lambda header: header.name)
def test_displayed_as_by_another_reader(header: Header, reader: str, tmp_path: Path) -> None:
    if reader == "dcm2pnm" and shutil.which("dcm2pnm") is None:
        pytest.skip("needs dcm2pnm, from Debian's package dcmtk")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, about the elements drawn
        found = differences(header, tmp_path, reader)
    agrees = found is not None and found <= ROUNDING
    assert agrees == (reader not in header.differs), f"{reader} differs by {found}"
