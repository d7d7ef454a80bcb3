"""Small drawn inputs that once went wrong, in a folder next to the project; tests of them skip where it is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

_CASES = Path(__file__).parents[3] / "shared" / "cases"


def case_folder(name: str) -> Path:
    """The folder of a case; skips the test where the cases are not."""
    if not (_CASES / name).is_dir():
        pytest.skip(f"needs ../shared/cases/{name}")
    return _CASES / name
