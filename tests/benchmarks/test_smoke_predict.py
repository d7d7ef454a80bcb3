"""benchmarks/predict.py: every row and way of its table runs, at tiny shapes on the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.predict import ROWS, SAM2_ALONE, WAYS, Row, measure, read_rows, table

IMAGES = 3


def tiny(row: Row) -> Row:
    """The row with the smallest model of its kind."""
    size = "sam2_tiny" if row.size in SAM2_ALONE else "tiny"
    return replace(row, size=size, image_size=64, device="cpu", images=IMAGES)


@pytest.mark.slow
@pytest.mark.parametrize("row", read_rows(ROWS), ids=lambda row: row.name)
def test_every_way_of_a_row_runs(row: Row) -> None:
    torch.manual_seed(0)
    results = measure(tiny(row), None)
    assert [result["way"] for result in results] == list(row.ways)
    for result in results:
        assert result["images_per_s"] > 0 and result["s_per_image"] > 0 and result["batches"] >= 1
        assert (result["gpu"], result["quantise"], result["gpus"]) == ("CPU", row.quantise, row.gpus)
    assert len(table(results).splitlines()) == 2 + len(row.ways)


def test_the_rows_use_known_ways_and_leave_out_one() -> None:
    used = {way for row in read_rows(ROWS) for way in row.ways}
    assert used <= set(WAYS) and set(WAYS) - used == {"batch_4"}  # batch_4: for rows of a user's own file


def test_a_failed_row_is_a_line_of_the_table() -> None:
    row = {"name": "8B bf16", "way": "", "error": "out of memory", "cap_gib": 23.0}
    assert table([row]).splitlines()[2] == "| 8B bf16 | failed: out of memory | | | | 23.0 |"
