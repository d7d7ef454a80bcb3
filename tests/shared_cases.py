"""Small inputs that once went wrong, in ../shared/cases; each also has a drawn variant in the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

_CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"


def case(name: str) -> Path:
    """The folder of a case; skips the test where it is missing."""
    if not (_CASES / name).is_dir():
        pytest.skip(f"../shared/cases/{name} is missing")
    return _CASES / name
